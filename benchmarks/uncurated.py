"""Does pretraining on unrelated, uncurated images help on CIFAR-10? A mix of pets, streets, emoji and blood smears.

    for name in cats_dogs camvid emoji bccd; do tar -xzf $name.tar.gz -C MIX; done
    python benchmarks/uncurated.py --mix MIX --data CIFAR --runs RUNS

CIFAR is the folder of benchmarks/subset.py. SimCLR is trained for the steps of its budget on tiles of the mix, as many as there
are training images of CIFAR-10, and on these; both encoders, and random weights, are evaluated on CIFAR-10. Pictures are cut
into square tiles, for the streets are wide. Writes uncurated.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from commands import provenance, sslkit
from learn import BUDGETS, EVALUATIONS, RESULTS, SIZES, DataSet, of_result
from PIL import Image

HERE = Path(__file__).parent
PARTS = {
    "pets": "cats_dogs/**/*.jpg",
    "streets": "camvid/*/images/*.jpg",
    "emoji": "emoji/**/*.png",
    "blood smears": "**/JPEGImages/*.jpg",
}
TILE = 64  # side of what is written, in pixels


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--mix", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data, runs = DataSet("cifar10", arguments.data.resolve()), arguments.runs.resolve()
    images = len((data.folder / "train.csv").read_text(encoding="utf-8").splitlines()) - 1
    counts = write_tiles(arguments.mix.resolve(), runs / "uncurated-tiles", images)
    steps = json.loads(BUDGETS.read_text(encoding="utf-8"))["cifar10"]["simclr"]["steps"]
    out, length = runs / f"uncurated-simclr-{arguments.seed}", ["--steps", steps, "--seed", arguments.seed]
    tiles = ["--data", runs / "uncurated-tiles", "--size", SIZES["cifar10"]]
    sslkit("pretrain", "simclr", *tiles, *length, "--out", out, "--resume", threads=1)
    record: dict[str, Any] = {**provenance(), "task": "simclr", "steps": steps, "seed": arguments.seed, "images": counts}
    for verb, protocol in EVALUATIONS.items():
        flags = ["--ckpt", out / "model.safetensors", *data.labels, "--protocol", protocol]
        record[verb] = of_result(sslkit(verb, *flags, threads=1), data)
    on_cifar = RESULTS / "cifar10" / f"simclr-{arguments.seed}.json"
    if on_cifar.exists():
        curated = json.loads(on_cifar.read_text(encoding="utf-8"))
        record["on_cifar10"] = {verb: curated[verb]["rows"][0]["metrics"][0]["value"] for verb in EVALUATIONS}
    (HERE / "uncurated.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_tiles(mix: Path, out: Path, count: int) -> dict[str, int]:
    """Write so many tiles, as many of each kind of picture as there are, and return how many."""
    counts = {}
    for place, (kind, pattern) in enumerate(PARTS.items()):
        files = sorted(mix.glob(pattern))
        if not files:
            raise SystemExit(f"{mix} has no {kind} ({pattern})")
        folder = out / kind.replace(" ", "_")
        folder.mkdir(parents=True, exist_ok=True)
        counts[kind] = count // len(PARTS)
        for number in range(counts[kind]):
            file = folder / f"{number}.png"
            if not file.exists():
                cut(Image.open(files[number % len(files)]).convert("RGB"), np.random.default_rng((place, number))).save(file)
    return counts


def cut(image: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Return a square of half to all of the short side, at a random place, shrunk to a tile."""
    side = int(min(image.size) * generator.uniform(0.5, 1))
    left, top = (int(generator.integers(0, length - side + 1)) for length in image.size)
    return image.resize((TILE, TILE), Image.Resampling.BICUBIC, (left, top, left + side, top + side))


if __name__ == "__main__":
    main()
