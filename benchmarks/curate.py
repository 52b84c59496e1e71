"""Near duplicates and wrong labels planted among CIFAR-10's images, and training on a half that `sslkit curate` chose.

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

from commands import provenance, row_of, sslkit
from PIL import Image, ImageChops

PLANTED = 600  # of three kinds
THRESHOLDS = ("auto", 0.9, 0.95, 0.98, 0.99)
LABELED, WRONG = 1000, 0.05  # images of each class, share of wrong labels
STEPS = 600  # of simclr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train/CLASS/*.jpg")
    parser.add_argument("--ckpt", type=Path, required=True, help="checkpoint of an encoder of images of 32 px")
    parser.add_argument("--out", type=Path, required=True, help="folder for copies, tables and runs")
    parser.add_argument("--parts", nargs="+", default=["copies", "labels", "half"], help="what to measure again")
    arguments = parser.parse_args()
    file = Path(__file__).with_suffix(".json")
    folder = arguments.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    files = sorted((arguments.cifar.resolve() / "train").rglob("*.jpg"))
    measure = {"copies": find_copies, "labels": find_wrong_labels, "half": train_on_half}
    for part in arguments.parts:
        result = {**provenance(), **measure[part](files, arguments.ckpt, folder)}
        record = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps({**record, part: result}, indent=1) + "\n", encoding="utf-8")


def find_copies(files: list[Path], checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Plant copies, and return by threshold how many are listed, and how many of those listed are."""
    planted = plant(files, folder / "copies")
    write(folder / "plain.csv", files)
    write(folder / "planted.csv", [*files, *planted])
    record: dict[str, Any] = {"images": len(files), "planted": len(planted), "thresholds": {}}
    for threshold in THRESHOLDS:
        pairs, seconds = {}, 0.0
        for name in ("plain", "planted"):
            words = ["--ckpt", checkpoint, "--data", folder / f"{name}.csv", "--duplicates", threshold]
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
    return record


def train_on_half(files: list[Path], checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Train on all images, and on halves chosen in three ways, in equally many steps; return accuracies by linear probe."""
    labeled = [file for file in files if int(file.stem) < LABELED]
    test = sorted((files[0].parents[2] / "test").rglob("*.jpg"))
    for name, chosen in (("train", labeled), ("test", test)):
        with (folder / f"half-{name}.csv").open("w", newline="") as stream:
            csv.writer(stream).writerows([["path", "label"], *([str(file), file.parent.name] for file in chosen)])
    write(folder / "all.csv", files)
    record: dict[str, Any] = {"steps": STEPS}
    for select in ("all", "balanced", "random"):
        table, run = folder / f"half-{select}.csv", folder / f"run-{select}"
        if select == "all":
            write(table, files)
        else:
            words = ["--ckpt", checkpoint, "--data", folder / "all.csv", "--keep", 0.5, "--select", select]
            sslkit("curate", *words, "--out", table)
        if not (run / "model.safetensors").exists():
            sslkit("pretrain", "simclr", "--data", table, "--steps", STEPS, "--out", run)
        words = ["--ckpt", run / "model.safetensors", "--data", folder / "half-train.csv", "--label", "label"]
        result = sslkit("probe", *words, "--test", folder / "half-test.csv", "--no-baselines")
        record[select] = row_of(result["rows"][0])
    return record


def find_wrong_labels(files: list[Path], checkpoint: Path, folder: Path) -> dict[str, Any]:
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
        words = [
            "--ckpt",
            checkpoint,
            "--data",
            folder / "labels.csv",
            "--label",
            "label",
            "--duplicates",
            1,
            "--label-errors",
            WRONG,
        ]
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
