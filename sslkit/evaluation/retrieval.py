"""`sslkit retrieval`: rank the training part by closeness to each test sample."""

import torch
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.evaluation import Protocol
from sslkit.contract.result import Metric, Result
from sslkit.evaluation.knn import unit_features
from sslkit.evaluation.metrics import average_precision, precision_at
from sslkit.evaluation.session import (
    FeatureEvaluation,
    Layers,
    Measurement,
    Predictor,
    Settings,
    SplitFeatures,
    TrainingView,
)
from sslkit.evaluation.solvers import accumulation_type
from sslkit.evaluation.statistics import interval_of_mean
from sslkit.specs.evaluation import RetrievalSpec

_CHUNK = 2**24  # similarities ranked at once


class Retrieval(FeatureEvaluation):
    """Rank training samples by closeness to test samples: mean average precision."""

    verb = "retrieval"
    Options = RetrievalSpec
    by_distance = True
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
        precisions = rank(bank, test.features, test.labels)
        average = precisions[:, 0]
        low, high, method = interval_of_mean(average)
        n = len(test.labels)
        return Measurement(
            [
                Metric("mAP", float(average.mean()), low, high, method, n=n),
                Metric("precision at 1", float(precisions[:, 1].mean()), n=n),
                Metric("precision at 10", float(precisions[:, 2].mean()), n=n),
            ],
            correct=average,
        )


class Bank(Predictor):
    """Training features `[N, D]`, which are brought to length 1, and labels `[N]` to rank.

    They are float64, and similarities are rounded to float32: in float32, a product's last digit depends on the place of
    its row, so that of equal samples one would be nearer than another.
    """

    def __init__(self, features: Tensor, labels: Tensor, device: torch.device) -> None:
        self.features, self.n_train = unit_features(features, device, accumulation_type(device)), len(features)
        self.labels = labels

    def scores(self, layers: Layers) -> Tensor:
        """Return the similarities `[M, N]` to the training samples."""
        (queries,) = layers.values()
        return self.similarity(queries).cpu()

    def similarity(self, queries: Tensor) -> Tensor:
        """Return the cosines of queries `[M, D]` and the training samples, float32 `[M, N]` on the device."""
        unit = unit_features(queries, self.features.device, self.features.dtype)
        return (unit @ self.features.T).float()


def retrieval(spec: RetrievalSpec) -> Result:
    """Evaluate a checkpoint by retrieval, as `sslkit retrieval` does."""
    return Retrieval().run(spec)


def rank(bank: Bank, test: Tensor, test_labels: Tensor) -> Tensor:
    """Return average precision, precision at 1 and at 10 of each test sample, `[M, 3]` on the CPU, ranking by cosine.

    Samples of one class, which share the relevant items, are ranked together.
    """
    precisions, chunk = torch.zeros(len(test), 3, dtype=torch.float64), max(1, _CHUNK // bank.n_train)
    with show_progress("ranking", len(test)) as progress:
        for label in test_labels.unique().tolist():
            relevant = (bank.labels == label).nonzero()[:, 0].to(bank.features.device)
            for rows in (test_labels == label).nonzero()[:, 0].split(chunk):
                similarity = bank.similarity(test[rows])
                measures = average_precision(similarity, relevant), *(precision_at(similarity, relevant, k) for k in (1, 10))
                precisions[rows] = torch.stack(measures, dim=1)
                progress.advance(len(rows))
    return precisions
