"""Confidence intervals and significance tests."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.result import Comparison, Row

RESAMPLES = 2000
_FEWEST = 10  # samples of a ratio that are resampled
_LEVEL = 0.05  # of significance
_BLOCK = 2**22  # values resampled at once: 32 MB
BOOTSTRAP = f"bootstrap over samples, {RESAMPLES:,} resamples"
EXACT = "exact binomial (Clopper-Pearson)"
MCNEMAR = "McNemar's exact test"
PAIRED = f"paired bootstrap over samples, {RESAMPLES:,} resamples"


@dataclass(frozen=True)
class Answers:
    """How well a model did on each test sample: 0 or 1, or a share, such as the mean over seeds or an average precision."""

    rows: NDArray[np.int64]  # of the test data; unreadable samples are missing
    correct: Tensor  # [len(rows)]


@dataclass(frozen=True)
class Totals:
    """A ratio as two values of each sample, such as correct words and all words of each sentence."""

    sums: NDArray[np.float64]  # [N]
    sizes: NDArray[np.float64]  # [N]

    def ratio(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the ratios of the totals over rows of samples, `[R, n]`; 0 where the second total is 0."""
        sizes = self.sizes[places].sum(axis=1)
        ratios: NDArray[np.float64] = np.divide(
            self.sums[places].sum(axis=1), sizes, out=np.zeros(len(places)), where=sizes > 0
        )
        return ratios


def mcnemar_of_answers(first: Answers, second: Answers) -> float:
    """Return McNemar's p-value over the samples that both models classified."""
    return mcnemar(*_shared_samples(first, second))


def compare_answers(first: Answers, second: Answers) -> Comparison:
    """Return the mean difference of `first` to `second` over the samples of both, with its 95% interval and p-value.

    The p-value is McNemar's where all answers are 0 or 1, else that of the bootstrap.
    """
    correct, reference = (values.double() for values in _shared_samples(first, second))
    low, high, p_value = _interval_of_difference((correct - reference).numpy())
    binary = bool(((correct == 0) | (correct == 1)).all() and ((reference == 0) | (reference == 1)).all())
    return Comparison(
        mcnemar(correct, reference) if binary else p_value,
        MCNEMAR if binary else PAIRED,
        difference=float((correct - reference).mean()),
        low=low,
        high=high,
    )


def _shared_samples(first: Answers, second: Answers) -> tuple[Tensor, Tensor]:
    """Return the answers of both on the samples that both have."""
    _, first_places, second_places = np.intersect1d(first.rows, second.rows, assume_unique=True, return_indices=True)
    return first.correct[torch.from_numpy(first_places)], second.correct[torch.from_numpy(second_places)]


def _interval_of_difference(differences: NDArray[np.float64], seed: int = 0) -> tuple[float, float, float]:
    """Return the bootstrap's 95% interval of the mean of differences `[N]`, from -1 to 1, and its two-sided p-value.

    Where all are equal there is nothing to resample: as much may differ as a share of which N samples have no case.
    """
    if (differences == differences[0]).all():
        mean, margin = float(differences[0]), 1 - 0.025 ** (1 / len(differences))
        return max(-1.0, mean - margin), min(1.0, mean + margin), 1.0 if mean == 0 else 1 / RESAMPLES
    n, rng = len(differences), np.random.default_rng(seed)
    if np.isin(differences, (-1, 0, 1)).all():  # as resampling, but as fast for many samples
        shares = [float((differences == value).mean()) for value in (-1, 0, 1)]
        means = rng.multinomial(n, shares, RESAMPLES) @ np.array([-1, 0, 1]) / n
    else:
        means = _resampled_means(differences, rng)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high), p_of_resamples(means)


def p_of_resamples(differences: NDArray[np.float64]) -> float:
    """Return the two-sided p-value of a difference from its resamples `[R]`: twice the smaller share beyond 0, at least 1/R."""
    tail = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, max(2 * tail, 1 / len(differences))))


def _resampled_means(samples: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the means of 2,000 resamples of samples `[N]`."""
    return np.concatenate([samples[places].mean(axis=1) for places in _resample(len(samples), rng)])


def _resample(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield the places of 2,000 resamples of `count` samples, `[R, count]`, some at a time."""
    block = max(1, _BLOCK // count)
    for start in range(0, RESAMPLES, block):
        yield rng.integers(count, size=(min(block, RESAMPLES - start), count))


def resample_counts(count: int, rng: np.random.Generator) -> Iterator[NDArray[np.int64]]:
    """Yield how often each of `count` samples is in each of 2,000 resamples, `[count]`."""
    for _ in range(RESAMPLES):
        yield np.bincount(rng.integers(count, size=count), minlength=count)


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
        means = _resampled_means(samples, rng)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high), BOOTSTRAP


def interval_of_ratio(
    totals: Totals, unit: str = "samples", seed: int = 0
) -> tuple[float, float, str] | tuple[None, None, None]:
    """Return the 95% interval of a ratio of two totals, and the method; of few samples None: resampling says nothing then."""
    if len(totals.sums) < _FEWEST:
        return None, None, None
    resamples = _resample(len(totals.sums), np.random.default_rng(seed))
    return interval_of_resamples(np.concatenate([totals.ratio(places) for places in resamples]), unit)


def compare_ratios(first: Totals, second: Totals, unit: str = "samples", seed: int = 0) -> Comparison | None:
    """Return the difference of two ratios over the same samples, with its 95% interval and the bootstrap's p-value.

    Of few samples None, as for `interval_of_ratio`.
    """
    if len(first.sums) < _FEWEST:
        return None
    pairs = [(first.ratio(places), second.ratio(places)) for places in _resample(len(first.sums), np.random.default_rng(seed))]
    ours, theirs = (np.concatenate(ratios) for ratios in zip(*pairs, strict=True))
    everything = np.arange(len(first.sums))[None]
    return compare_resamples(ours, theirs, float((first.ratio(everything) - second.ratio(everything))[0]), unit)


def spearman(values: NDArray[np.float64], targets: NDArray[np.float64]) -> float:
    """Return Spearman's correlation of values and targets `[N]`; 0 where all of one are equal."""
    return _correlation(values, targets, np.arange(len(values)))


def resample_spearman(values: NDArray[np.float64], targets: NDArray[np.float64], seed: int = 0) -> NDArray[np.float64]:
    """Return Spearman's correlation of values and targets `[N]` in 2,000 resamples, the same ones for all values."""
    rng = np.random.default_rng(seed)
    return np.array([_correlation(values, targets, rng.integers(len(values), size=len(values))) for _ in range(RESAMPLES)])


def _correlation(values: NDArray[np.float64], targets: NDArray[np.float64], places: NDArray[np.int64]) -> float:
    from scipy.stats import rankdata

    first, second = (ranks - ranks.mean() for ranks in (rankdata(values[places]), rankdata(targets[places])))
    scale = float(np.sqrt((first**2).sum() * (second**2).sum()))
    return float((first * second).sum()) / scale if scale else 0.0


def interval_of_resamples(resamples: NDArray[np.float64], unit: str = "samples") -> tuple[float, float, str]:
    """Return the 95% interval of a value from its resamples `[R]`, and the method."""
    low, high = np.percentile(resamples, [2.5, 97.5])
    return float(low), float(high), f"bootstrap over {unit}, {RESAMPLES:,} resamples"


def compare_resamples(
    first: NDArray[np.float64], second: NDArray[np.float64], difference: float, unit: str = "samples"
) -> Comparison:
    """Return a difference with its 95% interval and p-value, from values of the same resamples `[R]`."""
    low, high, method = interval_of_resamples(first - second, unit)
    return Comparison(p_of_resamples(first - second), f"paired {method}", difference=difference, low=low, high=high)


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


def select_equal(p_values: dict[str, float]) -> list[str]:
    """Return the names whose difference is not significant once the p-values are adjusted for their number (Holm)."""
    adjusted = adjust_holm(list(p_values.values()))
    return [name for name, value in zip(p_values, adjusted, strict=True) if value >= _LEVEL]


def adjust_comparisons(rows: list[Row]) -> list[Row]:
    """Return the rows of one result with every p-value adjusted for their number."""
    adjusted = iter(adjust_holm([comparison.p_value for row in rows for comparison in row.comparisons.values()]))
    return [
        replace(
            row,
            comparisons={name: replace(comparison, adjusted=next(adjusted)) for name, comparison in row.comparisons.items()},
        )
        for row in rows
    ]
