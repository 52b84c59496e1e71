"""Confidence intervals and significance tests."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Told = tuple[NDArray[np.int64], Tensor]  # rows of the data, and 1 where the label was predicted correctly
_RESAMPLES = 2000


def mcnemar_of_rows(one: Told, other: Told) -> float:
    """Return McNemar's p-value over the images that both models were shown."""
    _, mine, theirs = np.intersect1d(one[0], other[0], assume_unique=True, return_indices=True)
    return mcnemar(one[1][torch.from_numpy(mine)], other[1][torch.from_numpy(theirs)])


def count_duplicates(train: NDArray[np.int64], test: NDArray[np.int64]) -> int:
    """Return how many test images have the same pixels as one of the training part."""
    return int(np.isin(test, train).sum())


def interval(values: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the 95% interval of the mean of `[N]` by the bootstrap's percentiles (Efron, 1979), 2,000 resamples of samples."""
    rng, samples = np.random.default_rng(seed), values.numpy()
    means = [samples[rng.integers(len(samples), size=len(samples))].mean() for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def mcnemar(one: Tensor, other: Tensor) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947): who was right about the same samples, `[N]` of 0 and 1."""
    from scipy.stats import binomtest

    only_one, only_other = int(((one == 1) & (other == 0)).sum()), int(((one == 0) & (other == 1)).sum())
    differing = only_one + only_other
    return float(binomtest(only_one, differing).pvalue) if differing else 1.0
