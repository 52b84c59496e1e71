"""What is left of accuracy on corrupted CIFAR-10, on photographs of cats and dogs, and where shape and texture conflict.

    tar -xzf cifar10.tar.gz -C DATA && tar -xzf cats_dogs.tar.gz -C DATA && tar -xzf cue_conflict.tar.gz -C DATA
    python benchmarks/robustness.py --data DATA --tables TABLES --runs NAME=RUN NAME=RUN    # writes benchmarks/robustness.json

The runs are some that were pretrained on the first 1,000 images of each class, such as those of benchmarks/learn.py.
"""

import argparse
import csv
import json
import re
from pathlib import Path
from typing import Any

from commands import provenance, row_of, sslkit

# Classes of Geirhos et al. (2019) that CIFAR-10 has, by their names there.
SHARED = {
    "airplane": "airplane",
    "bird": "bird",
    "boat": "ship",
    "car": "automobile",
    "cat": "cat",
    "dog": "dog",
    "truck": "truck",
}
TRAINED_ON = 1000  # images of each class


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with cifar10/, cats_dogs/ and cue_conflict/")
    parser.add_argument("--tables", type=Path, required=True, help="folder for tables")
    parser.add_argument("--runs", nargs="+", required=True, help="runs as NAME=FOLDER")
    arguments = parser.parse_args()
    data, tables = arguments.data.resolve(), arguments.tables.resolve()
    tables.mkdir(parents=True, exist_ok=True)
    train, test, shifted, conflicts = write_tables(data, tables)
    record: dict[str, Any] = {**provenance(), "runs": {}}
    for name, _, folder in (run.partition("=") for run in arguments.runs):
        words = ["robustness", "--ckpt", Path(folder, "model.safetensors"), "--data", train, "--test", test, "--label", "label"]
        results = {
            "corruptions": sslkit(*words, "--samples", 2000),
            "shift": sslkit(*words, "--protocol", "robustness/shift-v1", "--shifted", shifted),
            "shape": sslkit(*words, "--protocol", "robustness/shape-v1", "--samples", 5000),
            "conflicts": sslkit(*words, "--protocol", "robustness/conflicts-v1", "--conflicts", conflicts),
        }
        record["runs"][name] = {
            kind: {"seconds": result["seconds"], "rows": [record_row(row) for row in result["rows"]]}
            for kind, result in results.items()
        }
        Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def record_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row with all of its metrics."""
    metrics = {metric["name"]: [metric["value"], metric["low"], metric["high"]] for metric in row["metrics"]}
    return {**row_of(row), "metrics": metrics, "by_corruption": row["by_class"]}


def write_tables(data: Path, tables: Path) -> list[Path]:
    """Write tables of the training part, the test part, photographs, and pictures with conflicting cues."""
    parts: dict[str, list[tuple[Any, ...]]] = {"train": [], "test": [], "photographs": [], "conflicts": []}
    for part, most in (("train", TRAINED_ON), ("test", None)):
        for folder in sorted((data / "cifar10" / part).iterdir()):
            parts[part] += [(file, folder.name) for file in sorted(folder.glob("*.jpg"))[:most]]
    for folder in sorted((data / "cats_dogs" / "test").iterdir()):
        parts["photographs"] += [(file, folder.name) for file in sorted(folder.iterdir())]
    for file in sorted((data / "cue_conflict").rglob("*.jpg")):
        shape, texture = re.findall(r"([a-z]+)\d+", file.stem)
        if shape in SHARED and texture in SHARED:
            parts["conflicts"].append((file, SHARED[shape], SHARED[texture]))
    written = []
    for name, rows in parts.items():
        written.append(tables / f"{name}.csv")
        with written[-1].open("w", newline="", encoding="utf-8") as stream:
            head = ["path", "shape", "texture"] if name == "conflicts" else ["path", "label"]
            csv.writer(stream).writerows([head, *rows])
    return written


if __name__ == "__main__":
    main()
