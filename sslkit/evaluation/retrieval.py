"""`sslkit retrieval`: rank the training part by closeness to each test sample."""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.evaluation import Protocol
from sslkit.contract.result import Metric, Result
from sslkit.evaluation.metrics import average_precision
from sslkit.evaluation.session import (
    FeatureEvaluation,
    Layers,
    Measurement,
    Predictor,
    Settings,
    SplitFeatures,
    TrainingView,
)
from sslkit.evaluation.statistics import interval_of_mean
from sslkit.specs.evaluation import RetrievalSpec

_CHUNK = 2**24  # similarities ranked at once


class Retrieval(FeatureEvaluation):
    """Rank training samples by closeness to test samples: mean average precision."""

    verb = "retrieval"
    Options = RetrievalSpec
    protocols = (
        Protocol(
            "retrieval/map-v1",
            "mean average precision of ranking the training part by cosine to each test sample",
            {},
            deterministic=True,
        ),
    )

    def fit(self, train: TrainingView, settings: Settings, seed: int) -> Predictor:
        """Return the training features, ready to be ranked."""
        return Bank(train.features, train.labels, train.device)

    def measure(self, predictors: list[Predictor], test: SplitFeatures, classes: tuple[str, ...]) -> Measurement:
        """Return mean average precision, and precision at 1 and 10."""
        (bank,) = predictors
        assert isinstance(bank, Bank)
        precisions = rank(bank.features, bank.labels, test.features, test.labels, bank.device)
        average = torch.from_numpy(precisions[:, 0])
        low, high, method = interval_of_mean(average)
        n = len(test.labels)
        return Measurement(
            [
                Metric("mAP", float(average.mean()), low, high, method, n=n),
                Metric("precision at 1", float(precisions[:, 1].mean()), n=n),
                Metric("precision at 10", float(precisions[:, 2].mean()), n=n),
            ]
        )


class Bank(Predictor):
    """Training features `[N, D]` and labels `[N]` to rank."""

    def __init__(self, features: Tensor, labels: Tensor, device: torch.device) -> None:
        self.features, self.labels, self.device, self.n_train = features, labels, device, len(features)

    def scores(self, layers: Layers) -> Tensor:
        """Return the similarities `[M, N]` to the training samples."""
        (queries,) = layers.values()
        return F.normalize(queries, dim=1) @ F.normalize(self.features, dim=1).T


def retrieval(spec: RetrievalSpec) -> Result:
    """Evaluate a checkpoint by retrieval, as `sslkit retrieval` does."""
    return Retrieval().run(spec)


def rank(train: Tensor, labels: Tensor, test: Tensor, test_labels: Tensor, device: torch.device) -> NDArray[np.float64]:
    """Return average precision, precision at 1 and at 10 of each test sample, `[M, 3]`, ranking by cosine."""
    bank = F.normalize(train, dim=1).to(device)
    chunk, precisions = max(1, _CHUNK // len(train)), []
    with show_progress("ranking", len(test)) as progress:
        for queries, query_labels in zip(test.split(chunk), test_labels.split(chunk), strict=True):
            similarity = F.normalize(queries, dim=1).to(device) @ bank.T
            order = similarity.argsort(dim=1, descending=True, stable=True).cpu()
            relevant = (labels[order] == query_labels[:, None]).numpy()
            at_one_and_ten = (relevant[:, :1].mean(axis=1), relevant[:, :10].mean(axis=1))
            precisions.append(np.stack([average_precision(relevant), *at_one_and_ten], axis=1))
            progress.advance(len(queries))
    return np.concatenate(precisions)
