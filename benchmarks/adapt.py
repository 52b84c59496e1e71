"""Adapting to corrupted CIFAR-10 without labels: batch statistics, TENT and test-time training, with GroupNorm and BatchNorm.

    tar -xzf cifar10.tar.gz -C DATA
    python benchmarks/adapt.py --cifar DATA/cifar10 --out FOLDER      # writes benchmarks/adapt.json

Rotation and labels are trained together on the first 1,000 images of each class; a run that is there is not trained again.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from commands import provenance, row_of, sslkit

STEPS, TRAINED_ON = 1500, 1000
STANDARD = ("gaussian_noise", "fog", "jpeg")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train/CLASS/*.jpg and test/CLASS/*.jpg")
    parser.add_argument("--out", type=Path, required=True, help="folder for tables and runs")
    parser.add_argument("--norms", nargs="+", default=["group", "batch"], help="runs to measure")
    parser.add_argument("--samples", type=int, default=500, help="test images of the online protocol")
    parser.add_argument("--orders", type=int, default=3, help="orders of the online protocol")
    arguments = parser.parse_args()
    folder, file = arguments.out.resolve(), Path(__file__).with_suffix(".json")
    folder.mkdir(parents=True, exist_ok=True)
    train, test = (write_table(arguments.cifar.resolve() / part, folder / f"{part}.csv") for part in ("train", "test"))
    labeled = ["--data", train, "--label", "label"]
    for norm in arguments.norms:
        run = folder / norm
        if not (run / "model.safetensors").exists():
            options = ["--steps", STEPS, "--batch-size", 128, "--all-labels", "--keep-parts", "head", "--health-every", 0]
            options += ["--encoder-option", "norm=group"] if norm == "group" else []
            sslkit("pretrain", "rotation+supervised", *labeled, *options, "--out", run)
        words = ["adapt", "--ckpt", run / "model.safetensors", *labeled, "--test", test]
        chosen = [word for name in STANDARD for word in ("--corruption", name)]
        results = {
            "online": sslkit(
                *words, "--samples", arguments.samples, "--orders", arguments.orders, "--out", folder / f"{norm}.png"
            ),
            "standard": sslkit(*words, "--protocol", "adapt/standard-v1", *chosen),
        }
        if norm == "batch":
            results["standard, statistics of views"] = sslkit(
                *words, "--protocol", "adapt/standard-v1", *chosen, "--batchnorm", "train"
            )
        measured = {
            name: {"seconds": result["seconds"], "rows": [record_row(row) for row in result["rows"]]}
            for name, result in results.items()
        }
        records = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps({**records, norm: {**provenance(), **measured}}, indent=1) + "\n", encoding="utf-8")


def record_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with its accuracies by corruption, and the deviation between orders."""
    return {**row_of(row), "deviation": row["metrics"][0]["deviation"], "by_corruption": row["by_class"]}


def write_table(folder: Path, table: Path) -> Path:
    """Write a table of images with the names of their folders as labels, of training the first ones of each class."""
    with table.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "label"])
        for name in sorted(folder.iterdir()):
            files = sorted(name.glob("*.jpg"))[: TRAINED_ON if folder.name == "train" else None]
            writer.writerows([str(file), name.name] for file in files)
    return table


if __name__ == "__main__":
    main()
