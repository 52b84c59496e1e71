"""The area under the ROC curve, of samples and in resamples of them."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.result import Comparison, Metric
from sslkit.evaluation.statistics import compare_resamples, interval_of_resamples, resample_counts


@dataclass(frozen=True)
class Ranking:
    """Scores `[N]` of samples, and which of them are positive: these should be larger."""

    scores: NDArray[np.float64]
    positive: NDArray[np.bool_]

    def area(self, weights: NDArray[np.int64] | None = None) -> float:
        """Return the area under the ROC curve, where samples count as often as weights `[N]` say; ties are halves."""
        counts = np.ones(len(self.scores)) if weights is None else weights.astype(np.float64)
        values = len(self._groups[0])
        # By score: how many negatives and positives have it.
        below, above = (np.bincount(self._groups[1], counts * kind, values) for kind in (~self.positive, self.positive))
        pairs = below.sum() * above.sum()
        return float((above * (below.cumsum() - below / 2)).sum() / pairs) if pairs else float("nan")

    @cached_property
    def _groups(self) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        return np.unique(self.scores, return_inverse=True)

    @cached_property
    def resamples(self) -> NDArray[np.float64]:
        """Return the area in 2,000 resamples, the same ones for all rankings of these samples; both kinds keep their number."""
        rng, kinds = np.random.default_rng(0), [np.flatnonzero(self.positive == kind) for kind in (False, True)]
        areas, weights = list[float](), np.zeros(len(self.scores), dtype=np.int64)
        for counts in zip(*(resample_counts(len(rows), rng) for rows in kinds), strict=True):
            for rows, of_kind in zip(kinds, counts, strict=True):
                weights[rows] = of_kind
            areas.append(self.area(weights))
        return np.array(areas)

    def metric(self, name: str, unit: str = "samples") -> Metric:
        """Return the area with its interval."""
        low, high, method = interval_of_resamples(self.resamples, unit)
        return Metric(name, self.area(), low, high, method, n=len(self.scores), unit_of_n=unit)

    def compare(self, other: "Ranking") -> Comparison:
        """Return by how much this area exceeds another over the same samples."""
        difference = self.area() - other.area()
        return compare_resamples(self.resamples, other.resamples, difference, "samples")
