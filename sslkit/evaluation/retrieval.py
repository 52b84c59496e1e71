"""`sslkit retrieval`: rank the training part by closeness to each test image."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.evaluation.metrics import average_precision
from sslkit.evaluation.models import Model
from sslkit.evaluation.session import Evaluation, open_evaluation, settle
from sslkit.evaluation.statistics import count_duplicates, interval
from sslkit.specs.evaluation import RetrievalSpec

PROTOCOL = "retrieval/map-v1"


_CHUNK = 2**24  # similarities that are ranked at once


@dataclass(frozen=True)
class RetrievalRow:
    """Hold one line of the table: how many of the nearest training images have the test image's label; shares of 1."""

    model: str
    test: str
    layer: str
    mean_average_precision: float
    mean_average_precision_interval: tuple[float, float]
    precision_at_1: float
    precision_at_10: float
    n_train: int
    n_test: int
    duplicates: int
    test_seen_in_pretraining: bool
    weights: str


@dataclass(frozen=True)
class RetrievalResult:
    """Hold what `sslkit retrieval --json` prints."""

    command: str
    protocol: str | None
    settings: dict[str, Any]
    checkpoint: str
    weights: str
    data: dict[str, str | list[str]]
    rows: list[RetrievalRow]


def retrieval(spec: RetrievalSpec) -> RetrievalResult:
    """Evaluate a checkpoint by retrieval; everything `sslkit retrieval` does."""
    evaluation = open_evaluation(spec)
    protocol, settings = settle(spec, PROTOCOL)
    rows = [row for model in evaluation.models for row in _rows(evaluation, model, settings["layer"])]
    result = RetrievalResult(
        command="retrieval",
        protocol=protocol,
        settings=evaluation.described(settings),
        checkpoint=str(evaluation.checkpoint.path),
        weights=rows[0].weights,
        data=evaluation.parts.hashes(),
        rows=rows,
    )
    evaluation.record(asdict(result))
    return result


def _rows(evaluation: Evaluation, model: Model, layer: str) -> list[RetrievalRow]:
    train, tests = evaluation.features(model, layer)
    rows = []
    for name, bank in train.layers.items():
        for part, test in zip(evaluation.parts.tests, tests, strict=True):
            found = rank(bank, train.labels, test.layers[name], test.labels, evaluation.models[0].encoder.device)
            precision = torch.from_numpy(found[:, 0])
            rows.append(
                RetrievalRow(
                    model=model.name,
                    test=part.name,
                    layer=name,
                    mean_average_precision=float(precision.mean()),
                    mean_average_precision_interval=interval(precision),
                    precision_at_1=float(found[:, 1].mean()),
                    precision_at_10=float(found[:, 2].mean()),
                    n_train=len(bank),
                    n_test=len(test.labels),
                    duplicates=count_duplicates(train.hashes, test.hashes),
                    test_seen_in_pretraining=part.seen_in_pretraining,
                    weights=model.weights,
                )
            )
    return rows


def rank(train: Tensor, labels: Tensor, test: Tensor, wanted: Tensor, device: torch.device) -> NDArray[np.float64]:
    """Return average precision, precision at 1 and at 10 of each test image, `[M, 3]`, ranking by cosine."""
    bank = F.normalize(train, dim=1).to(device)
    found = []
    with show_progress("ranking", len(test)) as progress:
        for queries, own in zip(*(part.split(max(1, _CHUNK // len(train))) for part in (test, wanted)), strict=True):
            similarity = F.normalize(queries, dim=1).to(device) @ bank.T
            order = similarity.argsort(dim=1, descending=True, stable=True).cpu()
            relevant = (labels[order] == own[:, None]).numpy()
            precisions = (relevant[:, :1].mean(axis=1), relevant[:, :10].mean(axis=1))
            found.append(np.stack([average_precision(relevant), *precisions], axis=1))
            progress.advance(len(queries))
    return np.concatenate(found)
