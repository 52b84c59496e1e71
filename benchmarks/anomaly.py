"""Defects planted in handwritten digits: which images, and which pixels, `sslkit anomaly` finds unlike normal ones.

    python benchmarks/anomaly.py --out FOLDER      # writes benchmarks/anomaly.json

Digits of scikit-learn at 64 px: 1,000 without defects to remember, 300 more and 300 with one defect each to test on. Two
encoders are trained on the normal digits first.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from commands import provenance, row_of, sslkit
from PIL import Image, ImageDraw
from sklearn.datasets import load_digits

SIDE, NORMAL, TESTED = 64, 1000, 300
KINDS = ("scratch", "spot", "gap")
STEPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for images and runs")
    arguments = parser.parse_args()
    folder = arguments.out.resolve()
    if not (folder / "digits").exists():
        write_digits(folder / "digits")
    record: dict[str, Any] = {**provenance(), "tasks": {}}
    for task in ("rotation", "simclr"):
        run, data = folder / task, folder / "digits"
        if not (run / "model.safetensors").exists():
            sslkit("pretrain", task, "--data", data / "train", "--size", 32, "--batch-size", 64, "--steps", STEPS, "--out", run)
        words = ["--ckpt", run / "model.safetensors", "--data", data, "--targets", "../../ground_truth/{folder}/{stem}.png"]
        result = sslkit("anomaly", *words, "--resolution", SIDE, "--out", folder / f"{task}.png")
        rows = [{**row_of(row), "metrics": {m["name"]: m["value"] for m in row["metrics"]}} for row in result["rows"]]
        record["tasks"][task] = {"seconds": result["seconds"], "rows": rows}
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def write_digits(folder: Path) -> None:
    """Write normal digits, and digits with a scratch, a spot or a gap, with the mask of what was changed."""
    random, digits = np.random.default_rng(0), load_digits().images
    for number, place in enumerate(random.permutation(len(digits))[: NORMAL + 2 * TESTED]):
        picture = Image.fromarray((digits[place] * 255 / 16).astype(np.uint8)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        kind = "good" if number < NORMAL + TESTED else KINDS[number % 3]
        file = folder / ("train" if number < NORMAL else "test") / kind / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        if kind != "good":
            changed = plant(picture, kind, random)
            mask = np.asarray(changed).astype(int) != np.asarray(picture).astype(int)
            target = folder / "ground_truth" / kind / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask.astype(np.uint8) * 255).save(target)
            picture = changed
        picture.save(file)


def plant(picture: Image.Image, kind: str, random: np.random.Generator) -> Image.Image:
    """Return a copy with a defect at a random place of the stroke: a scratch across it, a spot in it, or a gap."""
    stroke = np.argwhere(np.asarray(picture) > 180)
    down, across = stroke[random.integers(len(stroke))].tolist()
    changed = picture.copy()
    pen = ImageDraw.Draw(changed)
    if kind == "scratch":
        angle, length = random.uniform(0, np.pi), random.uniform(10, 18)
        step = length * np.cos(angle), length * np.sin(angle)
        pen.line((across - step[0], down - step[1], across + step[0], down + step[1]), fill=128, width=2)
    elif kind == "spot":
        radius = random.uniform(2.5, 4)
        pen.ellipse((across - radius, down - radius, across + radius, down + radius), fill=64)
    else:
        radius = random.uniform(4, 6)
        pen.rectangle((across - radius, down - radius, across + radius, down + radius), fill=0)
    return changed


if __name__ == "__main__":
    main()
