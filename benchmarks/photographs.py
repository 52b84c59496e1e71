"""Write the second data set of the results: photographs of pets, and tiles of street scenes, with eight classes.

    tar -xzf cats_dogs.tar.gz -C DIR && tar -xzf camvid.tar.gz -C DIR
    python benchmarks/photographs.py DIR

Cats and dogs stay as they are. Street scenes are cut into tiles of 64 px, of which those with more than half of their pixels
in one of six classes are kept. Writes DIR/tiles, and DIR/train.csv and DIR/test.csv with path, label and group: the tiles of a
frame are a group, so that no frame is on both sides of a split. CamVid's test sequences are not its training sequences.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

TILE = 64
CLASSES = {0: "sky", 1: "building", 3: "road", 4: "pavement", 5: "tree", 8: "car"}  # the others have few such tiles
PARTS = {"train": ("train", "val"), "test": ("test",)}


def main(root: Path) -> None:
    for part, folders in PARTS.items():
        pets = sorted((root / "cats_dogs" / part).glob("*/*.jpg"))
        rows = [(str(image.relative_to(root)), image.parent.name, image.stem) for image in pets]
        for folder in folders:
            rows += street_tiles(root / "camvid" / folder, root / "tiles" / part)
        lines = ["path,label,group", *(",".join(row) for row in rows)]
        (root / f"{part}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{part}: {len(rows):,} images, {dict(Counter(label for _, label, _ in rows))}")


def street_tiles(folder: Path, out: Path) -> Iterator[tuple[str, str, str]]:
    """Write tiles with a class in more than half of their pixels; return path, label and group of each."""
    out.mkdir(parents=True, exist_ok=True)
    for mask_file in sorted((folder / "masks").glob("*.png")):
        mask, image = np.asarray(Image.open(mask_file)), Image.open(folder / "images" / f"{mask_file.stem}.jpg")
        height, width = mask.shape
        top = height % TILE // 2
        for y in range(top, height - TILE + 1, TILE):
            for x in range(0, width - TILE + 1, TILE):
                counts = np.bincount(mask[y : y + TILE, x : x + TILE].ravel(), minlength=12)
                label = CLASSES.get(int(counts.argmax()))
                if label is None or counts.max() <= TILE * TILE / 2:
                    continue
                file = out / f"{mask_file.stem}-{y}-{x}.png"
                image.crop((x, y, x + TILE, y + TILE)).save(file)
                yield f"tiles/{out.name}/{file.name}", label, mask_file.stem


if __name__ == "__main__":
    main(Path(sys.argv[1]))
