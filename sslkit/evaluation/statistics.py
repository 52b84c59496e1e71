"""Confidence intervals and significance tests."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.result import Row

RESAMPLES = 2000
_BLOCK = 2**22  # values resampled at once: 32 MB
BOOTSTRAP = f"bootstrap over samples, {RESAMPLES:,} resamples"
EXACT = "exact binomial (Clopper-Pearson)"
MCNEMAR = "McNemar's exact test"


@dataclass(frozen=True)
class Answers:
    """Which test samples a model classified correctly."""

    rows: NDArray[np.int64]  # of the test data; unreadable samples are missing
    correct: Tensor  # 0 or 1, [len(rows)]


def mcnemar_of_answers(first: Answers, second: Answers) -> float:
    """Return McNemar's p-value over the samples that both models classified."""
    _, first_places, second_places = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    return mcnemar(first.correct[torch.from_numpy(first_places)], second.correct[torch.from_numpy(second_places)])


def count_duplicates(train: NDArray[np.int64], test: NDArray[np.int64]) -> int:
    """Return how many test samples have the same content as a training sample, given the hashes of both."""
    return int(np.isin(test, train).sum())


def interval_of_mean(values: Tensor, seed: int = 0) -> tuple[float, float, str]:
    """Return the 95% interval of the mean of shares `[N]`, and the method.

    It is that of the bootstrap's percentiles (Efron, 1979), 2,000 resamples of samples. Where all are 0 or all are 1 there is
    nothing to resample: then it is the exact one of a binomial share (Clopper & Pearson, 1934), whose other end is 0 or 1.
    """
    rng, samples = np.random.default_rng(seed), values.numpy()
    if (samples == samples[0]).all() and samples[0] in (0, 1):
        bound = 0.025 ** (1 / len(samples))
        return (bound, 1.0, EXACT) if samples[0] else (0.0, 1 - bound, EXACT)
    if np.isin(samples, (0, 1)).all():
        means = rng.binomial(len(samples), samples.mean(), RESAMPLES) / len(samples)  # as drawing that many zeros and ones
    else:
        block = max(1, _BLOCK // len(samples))
        counts = [min(block, RESAMPLES - start) for start in range(0, RESAMPLES, block)]
        resamples = (rng.integers(len(samples), size=(count, len(samples))) for count in counts)
        means = np.concatenate([samples[places].mean(axis=1) for places in resamples])
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high), BOOTSTRAP


def mcnemar(first: Tensor, second: Tensor) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) on the correctness of the same samples, `[N]` of 0 and 1."""
    from scipy.stats import binomtest

    only_first, only_second = int(((first == 1) & (second == 0)).sum()), int(((first == 0) & (second == 1)).sum())
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def adjust_holm(p_values: list[float]) -> list[float]:
    """Return p-values adjusted for multiple comparisons (Holm, 1979): the i-th smallest of m times m - i + 1, never falling."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[place]))
        adjusted[place] = largest
    return adjusted


def adjust_comparisons(rows: list[Row]) -> list[Row]:
    """Return the rows of one result with every p-value adjusted for their number."""
    adjusted = iter(adjust_holm([comparison.p_value for row in rows for comparison in row.comparisons.values()]))
    return [
        replace(row, comparisons={name: replace(made, adjusted=next(adjusted)) for name, made in row.comparisons.items()})
        for row in rows
    ]
