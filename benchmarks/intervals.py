"""Do the 95% intervals hold, and does the paired test raise false alarms in 5 of 100 cases? By redrawing test sets.

    python benchmarks/intervals.py --ckpt RUN/model.safetensors --against OTHER_SEED/model.safetensors --data CIFAR

CIFAR is the folder of benchmarks/subset.py. Of CIFAR-10's training part, 40,000 images are in neither the training list nor
the test list: what the checkpoint reaches on all of them counts as its true accuracy. 2,000 test sets of 2,000 are drawn from
them with replacement; each gives an interval, as every table does. For the paired test, the two models' answers are swapped
for each image by a coin, so that they are equally good, and a p-value below 0.05 is a false alarm. The same is done with
retrieval's average precisions, and with few-shot answers, which are means over ten draws of the shots.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from commands import provenance
from torch import Tensor

from sslkit.evaluation.knn import Knn
from sslkit.evaluation.retrieval import Retrieval
from sslkit.evaluation.session import FeatureEvaluation, open_session
from sslkit.evaluation.statistics import Answers, compare_answers, interval_of_mean
from sslkit.specs.evaluation import KnnSpec, RetrievalSpec

REDRAWS, SIZE = 2000, 2000
STATISTICS: dict[str, tuple[FeatureEvaluation, Callable[..., Any], dict[str, Any]]] = {
    "k-NN": (Knn(), KnnSpec, {}),
    "few shots, mean of 10 draws": (Knn(), KnnSpec, {"protocol": "knn/fewshot-v1"}),
    "average precision": (Retrieval(), RetrievalSpec, {}),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--against", required=True, help="a model about as good, such as the same task with another seed")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--redraws", type=int, default=REDRAWS)
    parser.add_argument("--size", type=int, default=SIZE, help="images of a test set")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "intervals.json")
    arguments = parser.parse_args()
    unseen = write_unseen(arguments.data)
    record: dict[str, Any] = {**provenance(), "redraws": arguments.redraws, "size": arguments.size, "statistics": {}}
    for name in STATISTICS:
        first, second = (answers(name, ckpt, arguments.data, unseen) for ckpt in (arguments.ckpt, arguments.against))
        record["unseen"] = len(first)
        record["statistics"][name] = redraw(first, second, arguments.redraws, arguments.size)
        arguments.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(name, record["statistics"][name], flush=True)


def write_unseen(root: Path) -> Path:
    """Write the list of the training images that are not in train.csv, and return its path."""
    used = {line.partition(",")[0] for line in (root / "train.csv").read_text(encoding="utf-8").splitlines()}
    names = [f"train/{image.parent.name}/{image.name}" for image in sorted((root / "train").glob("*/*"))]
    lines = ["path,label", *(f"{name},{name.split('/')[1]}" for name in names if name not in used)]
    file = root / "unseen.csv"
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def answers(statistic: str, ckpt: str, root: Path, unseen: Path) -> Tensor:
    """Return how well a checkpoint does on each unseen image `[N]`, float64."""
    evaluation, spec_class, values = STATISTICS[statistic]
    spec = spec_class(ckpt=ckpt, data=str(root / "train.csv"), test=[str(unseen)], label="label", baselines=False, **values)
    session = open_session(spec)
    _, settings = evaluation.resolve(spec, session)
    reader = session.reader(session.models[0], settings["layer"])
    train = reader.training()
    predictors = [evaluation.fit(train, settings, seed) for seed in range(settings.get("seeds", 1))]
    (test,) = reader.tests()
    correct = evaluation.measure(predictors, test, session.classes).correct
    assert correct is not None
    return correct


def redraw(first: Tensor, second: Tensor, redraws: int, size: int) -> dict[str, float]:
    """Return coverage of the interval, the width it has, and the shares of false alarms."""
    generator, truth = torch.Generator().manual_seed(0), float(first.mean())
    covered, widths, alarms, outside = 0, [], 0, 0
    for _ in range(redraws):
        places = torch.randint(len(first), (size,), generator=generator)
        low, high, _ = interval_of_mean(first[places])
        covered += low <= truth <= high
        widths.append(high - low)
        swap = torch.rand(size, generator=generator) < 0.5
        rows, ours, theirs = np.arange(size), first[places], second[places]
        comparison = compare_answers(
            Answers(rows, torch.where(swap, theirs, ours)), Answers(rows, torch.where(swap, ours, theirs))
        )
        alarms += comparison.p_value < 0.05
        assert comparison.low is not None and comparison.high is not None
        outside += not comparison.low <= 0 <= comparison.high
    return {
        "value": truth,
        "coverage": covered / redraws,
        "mean_width": float(np.mean(widths)),
        "false_alarms": alarms / redraws,
        "intervals_of_differences_without_0": outside / redraws,
    }


if __name__ == "__main__":
    main()
