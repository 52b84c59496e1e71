"""The area under the ROC curve, of samples and in resamples of them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.result import Comparison, Metric
from sslkit.evaluation.statistics import RESAMPLES, compare_resamples, interval_of_resamples


@dataclass(frozen=True)
class Ranking:
    """Scores `[N]` of samples, and which of them are positive: these should be larger."""

    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]

    def area(self, weights: NDArray[np.int64] | None = None) -> NDArray[np.float64]:
        """Return the area under the ROC curve, `[R]`, where samples count as often as weights `[R, N]` say; ties are halves."""
        if weights is None:
            weights = np.ones((1, len(self.scores)), dtype=np.int64)
        values, groups = np.unique(self.scores, return_inverse=True)
        below = np.zeros((len(weights), len(values)))
        above = np.zeros((len(weights), len(values)))
        for row, counts in enumerate(weights):  # by score: how many negatives and positives have it
            below[row] = np.bincount(groups, weights=counts * ~self.positive, minlength=len(values))
            above[row] = np.bincount(groups, weights=counts * self.positive, minlength=len(values))
        lower = below.cumsum(axis=1) - below / 2
        pairs = below.sum(axis=1) * above.sum(axis=1)
        areas: NDArray[np.float64] = np.where(pairs > 0, (above * lower).sum(axis=1) / np.maximum(pairs, 1), np.nan)
        return areas

    def resample(self, seed: int = 0) -> NDArray[np.float64]:
        """Return the area in 2,000 resamples, the same ones for all rankings of these samples; both kinds keep their number."""
        rng, kinds = np.random.default_rng(seed), [np.flatnonzero(self.positive == kind) for kind in (False, True)]
        weights = np.zeros((RESAMPLES, len(self.scores)), dtype=np.int64)
        for rows in kinds:
            for resample in weights:
                resample[rows] = np.bincount(rng.integers(len(rows), size=len(rows)), minlength=len(rows))
        return self.area(weights)

    def metric(self, name: str, unit: str = "samples") -> Metric:
        """Return the area with its interval."""
        low, high, method = interval_of_resamples(self.resample(), unit)
        return Metric(name, float(self.area()[0]), low, high, method, n=len(self.scores), unit_of_n=unit)

    def compare(self, other: "Ranking") -> Comparison:
        """Return by how much this area exceeds another over the same samples."""
        difference = float(self.area()[0] - other.area()[0])
        return compare_resamples(self.resample(), other.resample(), difference, "samples")
