"""Near duplicates and wrong labels that are planted among CIFAR-10's images: how many `sslkit curate` finds, and how fast.

    tar -xzf cifar10.tar.gz -C CIFAR
    python benchmarks/curate.py --cifar CIFAR --ckpt RUN/model.safetensors --out FOLDER      # writes benchmarks/curate.json

Copies are saved again as JPEG of quality 60, shifted by a pixel, or made brighter. Pairs that are listed without the planting
are duplicates that CIFAR-10 itself has, or errors; the precision is over all others. Wrong labels are planted among the first
1,000 images of each class.
"""

import argparse
import csv
import json
import random
import time
from pathlib import Path
from typing import Any

from commands import provenance, sslkit
from PIL import Image, ImageChops

PLANTED = 600  # of three kinds
THRESHOLDS = ("auto", 0.9, 0.95, 0.98, 0.99)
LABELED, WRONG = 1000, 0.05  # images of each class, share of wrong labels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train/CLASS/*.jpg")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of an encoder of images of 32 px")
    parser.add_argument("--out", type=Path, required=True, help="folder for copies and tables")
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((arguments.cifar.resolve() / "train").rglob("*.jpg"))
    planted = plant(files, folder / "copies")
    write(folder / "plain.csv", files)
    write(folder / "planted.csv", [*files, *planted])
    record: dict[str, Any] = {**provenance(), "images": len(files), "planted": len(planted), "thresholds": {}}
    for threshold in THRESHOLDS:
        pairs, seconds = {}, 0.0
        for name in ("plain", "planted"):
            words = ["--ckpt", arguments.ckpt, "--data", folder / f"{name}.csv", "--duplicates", threshold]
            started = time.monotonic()
            sslkit("curate", *words, "--out", folder / "chosen.csv")
            seconds = time.monotonic() - started  # of the last: features are in the cache after the first threshold
            with (folder / "chosen.left-out.csv").open(newline="") as stream:
                rows = [row for row in csv.DictReader(stream) if "duplicate" in row["reason"]]
            pairs[name] = {(row["path"], row["duplicate of"]) for row in rows}
        listed = pairs["planted"] - pairs["plain"]
        right = {(str(copy), str(file)) for copy, file in planted.items()}
        recalled = {path for path, _ in listed} & {str(copy) for copy in planted}
        record["thresholds"][str(threshold)] = {
            "recall": len(recalled) / len(planted),
            "precision": len(listed & right) / max(1, len(listed)),
            "listed without the planting": len(pairs["plain"]),
            "seconds": round(seconds, 1),
        }
        print(threshold, record["thresholds"][str(threshold)], flush=True)
    record["labels"] = find_wrong_labels(files, arguments.ckpt, folder)
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def find_wrong_labels(files: list[Path], checkpoint: Path, folder: Path) -> dict[str, dict[str, float]]:
    """Plant wrong labels, and return by number of neighbors how many are listed, how many of those listed are, and chance."""
    chosen = [file for file in files if int(file.stem) < LABELED]
    names = sorted({file.parent.name for file in chosen})
    picks = random.Random(0)
    wrong = set(picks.sample(chosen, round(WRONG * len(chosen))))
    with (folder / "labels.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        for file in chosen:
            others = [name for name in names if name != file.parent.name]
            writer.writerow([str(file), picks.choice(others) if file in wrong else file.parent.name])
    results = {}
    for neighbors in (10, 50, 200):
        words = ["--ckpt", checkpoint, "--data", folder / "labels.csv", "--label", "label", "--duplicates", 1, "--label-errors"]
        sslkit("curate", *words, "--neighbors", neighbors, "--out", folder / "chosen.csv")
        with (folder / "chosen.left-out.csv").open(newline="") as stream:
            listed = {row["path"] for row in csv.DictReader(stream) if row["reason"] == "label"}
        right = listed & {str(file) for file in wrong}
        shares = {"recall": len(right) / len(wrong), "precision": len(right) / max(1, len(listed)), "chance": WRONG}
        results[str(neighbors)] = {**shares, "listed": len(listed)}
    return results


def plant(files: list[Path], folder: Path) -> dict[Path, Path]:
    """Write copies of random images; return the image of each."""
    folder.mkdir(exist_ok=True)
    copies = {}
    for number, file in enumerate(random.Random(0).sample(files, PLANTED)):
        copy = folder / f"{number:04}.jpg"
        with Image.open(file) as image:
            picture = image.convert("RGB")
        if number % 3 == 1:
            picture = ImageChops.offset(picture, 1, 0)
        if number % 3 == 2:
            picture = picture.point(lambda value: min(255, value + 8))
        picture.save(copy, quality=60 if number % 3 == 0 else 95)
        copies[copy] = file
    return copies


def write(table: Path, files: list[Path]) -> None:
    """Write a table of images."""
    with table.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path"])
        writer.writerows([str(file)] for file in files)


if __name__ == "__main__":
    main()
