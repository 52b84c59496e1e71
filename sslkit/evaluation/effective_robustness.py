"""Effective robustness: accuracy under a shift beyond what accuracy without it predicts (Taori et al., 2020)."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.result import Metric
from sslkit.evaluation.statistics import interval_of_resamples, resample_counts

FEWEST = 4  # baselines that a line is fitted through
SPREAD = 0.1  # of their accuracies without the shift
NAME = "effective robustness"


@dataclass(frozen=True)
class ShiftAnswers:
    """How right several models are: the first one, and baselines.

    Both are shares of 1, `[P, N]` on the images without the shift, and `[P, M]` on those with it.
    """

    clean: NDArray[np.float64]
    shifted: NDArray[np.float64]
    paired: bool  # whether both are of the same images

    def metric(self) -> Metric | None:
        """Return the effective robustness of the first model; None if the baselines are too few, or too much alike.

        The interval resamples images, and fits the line again each time.
        """
        accuracies = self.clean[1:].mean(axis=1)
        if len(accuracies) < FEWEST or np.ptp(accuracies) < SPREAD:
            return None
        value = float(self._beyond_line(self.clean.mean(axis=1)[None], self.shifted.mean(axis=1)[None])[0])
        rng = np.random.default_rng(0)
        if self.paired:
            both = _resample_accuracies(np.concatenate([self.clean, self.shifted]), rng)
            before, after = both[:, : len(self.clean)], both[:, len(self.clean) :]
        else:
            before, after = (_resample_accuracies(answers, rng) for answers in (self.clean, self.shifted))
        low, high, method = interval_of_resamples(self._beyond_line(before, after), "images")
        return Metric(NAME, value, low, high, method, n=self.shifted.shape[1], unit_of_n="images")

    def _beyond_line(self, before: NDArray[np.float64], after: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how far the first model is above the line of the others, `[R]`, from accuracies `[R, P]`."""
        x, y = _logit(before, self.clean.shape[1]), _logit(after, self.shifted.shape[1])
        middle = x[:, 1:].mean(axis=1, keepdims=True)
        offsets = x[:, 1:] - middle
        slope = (offsets * y[:, 1:]).sum(axis=1) / np.maximum((offsets**2).sum(axis=1), 1e-12)
        expected = y[:, 1:].mean(axis=1) + slope * (x[:, 0] - middle[:, 0])
        beyond: NDArray[np.float64] = after[:, 0] - 1 / (1 + np.exp(-expected))
        return beyond


def _resample_accuracies(answers: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the accuracies of models in resamples of images, `[R, P]`, from `[P, N]`."""
    count = answers.shape[1]
    return np.stack([answers @ counts / count for counts in resample_counts(count, rng)])


def _logit(shares: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """Return log-odds, of shares that are kept half an image away from 0 and 1."""
    kept = shares.clip(0.5 / count, 1 - 0.5 / count)
    odds: NDArray[np.float64] = np.log(kept / (1 - kept))
    return odds
