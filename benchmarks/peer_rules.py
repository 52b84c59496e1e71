"""One run, scored by the rules that others score by: how far the numbers are apart, though nothing else differs.

    python benchmarks/peer_rules.py --data CIFAR --runs RUNS

CIFAR is the folder of benchmarks/subset.py. SimCLR is trained for the steps of its budget, with a linear classifier beside it
(online_probe.py); a checkpoint is kept after each tenth. The rules: k-NN with 20 and 200 neighbors and temperatures 0.07 and
0.1; the best checkpoint of the ten by accuracy on the test images; the classifier that was trained beside it; the best of 52
linear heads (13 rates on 4 layers) by accuracy on the test images, or on held-out training images. Writes peer_rules.json.
"""

import argparse
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from commands import provenance
from learn import BUDGETS, DataSet
from torch import Tensor

from sslkit.engine.resume_file import read_resume
from sslkit.evaluation.knn import votes
from sslkit.evaluation.metrics import is_correct
from sslkit.evaluation.probe import LinearHead, probe, train_heads
from sslkit.evaluation.session import SplitFeatures, TrainingView, open_session
from sslkit.evaluation.solvers import Standardized
from sslkit.specs.evaluation import ProbeSpec

HERE = Path(__file__).parent
TENTHS = 10
RATES = [rate * scale for scale in (1e-4, 1e-3, 1e-2, 1e-1) for rate in (1, 2, 5)] + [1.0]  # 13
SWEEP = {"head_batch": 256, "head_epochs": 20, "head_momentum": 0.9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, help="instead of the budget of simclr")
    arguments = parser.parse_args()
    data = DataSet("cifar10", arguments.data.resolve())
    steps = arguments.steps or json.loads(BUDGETS.read_text(encoding="utf-8"))["cifar10"]["simclr"]["steps"]
    kept = train(data, steps, arguments.runs.resolve() / "peer-rules")
    record: dict[str, Any] = {**provenance(), "task": "simclr", "steps": steps, "test_images": 0, "rules": {}}
    knn, online = [], []
    for folder in kept:
        training, test, classes = features(folder / "model.safetensors", data)
        knn.append(neighbors(training, test, 200, 0.1, classes))
        online.append(beside(folder, test))
    rules = {
        "k-NN: 20 neighbors, temperature 0.07": neighbors(training, test, 20, 0.07, classes),
        "k-NN: 20 neighbors, temperature 0.1": neighbors(training, test, 20, 0.1, classes),
        "k-NN: 200 neighbors, temperature 0.07": neighbors(training, test, 200, 0.07, classes),
        "k-NN: 200 neighbors, temperature 0.1": knn[-1],
        "k-NN: 200, 0.1, the best of ten checkpoints on the test images": max(knn),
        "classifier trained beside it": online[-1],
        "classifier trained beside it, the best of ten checkpoints on the test images": max(online),
        "logistic regression, last layer": regression(kept[-1] / "model.safetensors", data),
        **heads(training, test, classes),
    }
    record |= {"test_images": len(test.labels), "rules": rules, "knn_by_tenth": knn, "online_by_tenth": online}
    (HERE / "peer_rules.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    for rule, accuracy in rules.items():
        print(f"{100 * accuracy:.1f}%  {rule}")


def train(data: DataSet, steps: int, out: Path) -> list[Path]:
    """Train, and return folders with the checkpoint after each tenth."""
    tenth = steps // TENTHS
    folders = [out.with_name(f"{out.name}-{number * tenth}") for number in range(1, TENTHS + 1)]
    if all((folder / "model.safetensors").exists() for folder in folders):
        return folders
    shutil.rmtree(out, ignore_errors=True)
    length = ["--steps", tenth * TENTHS, "--checkpoint-every", tenth, "--out", out]
    words = ["pretrain", HERE / "online_probe.py", *data.flags, *data.columns, *length]
    process = subprocess.Popen([sys.executable, "-m", "sslkit", *map(str, words)])
    waiting = list(folders)
    while waiting:
        ended = process.poll() is not None
        if (out / "resume.pt").exists():
            step = read_resume(out / "resume.pt", torch.device("cpu"))["step"]
            folder = out.with_name(f"{out.name}-{step}")
            if folder in waiting:
                time.sleep(1)  # the model is written after the state
                folder.mkdir(exist_ok=True)
                for name in ("model.safetensors", "resume.pt"):
                    shutil.copy(out / name, folder / name)
                waiting = [each for each in waiting if each != folder]
        if ended and waiting:
            raise SystemExit(f"the run ended before {waiting[0].name}")
        time.sleep(0.5)
    return folders


def features(ckpt: Path, data: DataSet) -> tuple[TrainingView, SplitFeatures, tuple[str, ...]]:
    """Return the features of all layers of the training and the test images, and the classes."""
    train, test = data.folder / "train.csv", data.folder / "test.csv"
    spec = ProbeSpec(ckpt=str(ckpt), data=str(train), test=[str(test)], label="label", layer="all", baselines=False)
    session = open_session(spec)
    reader = session.reader(session.models[0], "all")
    training = reader.training()
    (tested,) = reader.tests()
    return training, tested, session.classes


def neighbors(train: TrainingView, test: SplitFeatures, k: int, temperature: float, classes: tuple[str, ...]) -> float:
    """Return the accuracy of weighted k-NN on the last layer."""
    last = list(train.layers)[-1]
    scores = votes(train.layers[last], train.labels, test.layers[last], k, temperature, len(classes))
    return accuracy(scores, test.labels)


def beside(folder: Path, test: SplitFeatures) -> float:
    """Return the accuracy of the classifier that was trained beside the encoder."""
    state = read_resume(folder / "resume.pt", torch.device("cpu"))["task"]
    weight, bias = state["head.classifier.weight"], state["head.classifier.bias"]
    return accuracy(list(test.layers.values())[-1].float() @ weight.T + bias, test.labels)


def regression(ckpt: Path, data: DataSet) -> float:
    """Return the accuracy of probe/logreg-v1."""
    train, test = str(data.folder / "train.csv"), [str(data.folder / "test.csv")]
    return probe(ProbeSpec(ckpt=str(ckpt), data=train, test=test, label="label", baselines=False)).headline.value


def heads(train: TrainingView, test: SplitFeatures, classes: tuple[str, ...]) -> dict[str, float]:
    """Return the best of 52 heads by test images, and what the one reaches that is best on held-out training images."""
    kept, held_out = (torch.from_numpy(rows) for rows in train.hold_out(0.2, 0))
    by_test, by_held_out, chosen = 0.0, -1.0, 0.0
    for layer, values in train.layers.items():
        data = Standardized.of(values, train.device)
        fitted = train_heads(data, train.labels, len(classes), RATES, 0, SWEEP)
        part = Standardized.of(values, train.device, kept)
        tried = train_heads(part.select(kept), train.labels[kept], len(classes), RATES, 0, SWEEP)
        for place in range(len(RATES)):
            fitted_head = LinearHead((fitted[0][place : place + 1], fitted[1][place : place + 1]), layer, data)
            reached = accuracy(fitted_head.scores(test.layers), test.labels)
            by_test = max(by_test, reached)
            tried_head = LinearHead((tried[0][place : place + 1], tried[1][place : place + 1]), layer, part)
            promise = accuracy(tried_head.scores({layer: values[held_out]}), train.labels[held_out])
            if promise > by_held_out:
                by_held_out, chosen = promise, reached
    return {
        "52 linear heads, the best on the test images": by_test,
        "52 linear heads, the best on held-out training images": chosen,
    }


def accuracy(scores: Tensor, labels: Tensor) -> float:
    """Return the share of labels that have the highest score."""
    return float(is_correct(scores, labels).mean())


if __name__ == "__main__":
    main()
