"""Labels for some samples: the ladder with 100 and 1,000 labels of CIFAR-10, and DeiT's distillation token.

    tar -xzf cifar10.tar.gz -C CIFAR && python benchmarks/subset.py CIFAR
    python benchmarks/labels.py ladder --cifar CIFAR --runs RUNS      # writes benchmarks/labels.json
    python benchmarks/labels.py token --cifar CIFAR --runs RUNS

`ladder`: an encoder is pretrained by simclr on the 10,000 images; then `sslkit ladder`, with rotation as the joint task, once
for each draw of the labels, so that every draw has its own paired test over the 10,000 test images.
`token`: a resnet_micro is trained on all labels; then vit_micro without it, and with it as a teacher in three ways.
Interrupted runs are continued.
"""

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import provenance, sslkit

from sslkit.evaluation.statistics import Answers, compare_answers

FILE = Path(__file__).with_suffix(".json")
PRETRAINING = ["simclr", "--steps", 1000]
LADDER = ["--task", "rotation", "--shares", 0.01, "--shares", 0.1, "--seeds", 1, "--steps", 1000]
STUDENTS = {
    "no teacher": [],
    "hard": ["--distill", "hard"],
    "soft": ["--distill", "soft", "--teacher-weight", 0.9],
    "token": ["--distill", "token"],
}
TEACHER = ["--encoder", "resnet_micro", "--epochs", 20]
STUDENT = ["--encoder", "vit_micro", "--encoder-option", "distilled=true", "--epochs", 8, "--lr", 5e-4]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("command", choices=["ladder", "token"])
    parser.add_argument("--cifar", type=Path, required=True, help="folder with train.csv and test.csv")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--seeds", default="0,1,2", help="draws of the labels, or seeds of the students")
    arguments = parser.parse_args()
    cifar, runs = arguments.cifar.resolve(), arguments.runs.resolve()
    data = ["--data", cifar / "train.csv", "--test", cifar / "test.csv", "--label", "label"]
    measure = measure_ladder if arguments.command == "ladder" else measure_token
    for seed in arguments.seeds.split(","):
        record(arguments.command, seed, measure(data, runs, int(seed)))


def record(kind: str, seed: str, result: dict[str, Any]) -> None:
    """Write a result beside those that are there."""
    records = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    records.setdefault(kind, {})[seed] = {**provenance(), **result}
    FILE.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")


def measure_ladder(data: list[Any], runs: Path, seed: int) -> dict[str, Any]:
    """Pretrain, or go on, and climb the ladder with one draw of the labels."""
    pretrained = runs / "simclr"
    sslkit("pretrain", *PRETRAINING, *data[:2], "--size", 32, "--out", pretrained, "--resume")
    ladder = ["--out", runs / f"ladder-{seed}", "--resume", "--seed", seed]
    result = sslkit("ladder", "--ckpt", pretrained / "model.safetensors", *data, *LADDER, *ladder)
    return {"rows": [row_of(row) for row in result["rows"]]}


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row's accuracy, and its comparison with supervised training alone."""
    metric = row["metrics"][0]
    comparison: dict[str, Any] = next(iter(row["comparisons"].values()), {})
    training = row["fits"][0]["training"] or {}
    return {
        "model": row["model"],
        **{name: metric[name] for name in ("value", "low", "high", "n")},
        "against_supervised": {name: comparison[name] for name in ("difference", "low", "high", "p_value") if comparison},
        "seconds": training.get("seconds"),
    }


def measure_token(data: list[Any], runs: Path, seed: int) -> dict[str, Any]:
    """Train the teacher, or go on, then the students; return accuracies on the test images, and paired comparisons."""
    teacher = runs / "teacher"
    common = [*data, "--size", 32, "--resume"]
    sslkit("finetune", *common, *TEACHER, "--out", teacher)
    correct = {"teacher": answers(teacher, data)}
    for name, flags in STUDENTS.items():
        out = runs / f"student-{name.replace(' ', '-')}-{seed}"
        taught = [] if name == "no teacher" else ["--teacher", teacher / "model.safetensors"]
        sslkit("finetune", *common, *STUDENT, *taught, *flags, "--seed", seed, "--out", out)
        correct[name] = answers(out, data)
    rows = []
    for name, values in correct.items():
        comparison = compare_answers(values, correct["no teacher"])
        against = {part: getattr(comparison, part) for part in ("difference", "low", "high", "p_value")}
        rows.append({"model": name, "value": float(values.correct.mean()), "against_no_teacher": against})
    return {"rows": rows}


def answers(run: Path, data: list[Any]) -> Answers:
    """Return which test images a run's classifier gets right."""
    out = run / "test.csv"
    sslkit("predict", "--ckpt", run / "model.safetensors", "--data", data[3], "--out", out)
    with data[3].open(encoding="utf-8") as stream:
        labels = {Path(row["path"]).parts[-2:]: row["label"] for row in csv.DictReader(stream)}
    with out.open(encoding="utf-8") as stream:
        correct = [row["class"] == labels[Path(row["path"]).parts[-2:]] for row in csv.DictReader(stream)]
    return Answers(np.arange(len(correct)), torch.tensor(correct, dtype=torch.float64))


if __name__ == "__main__":
    main()
