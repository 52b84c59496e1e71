"""Ratios of totals: intervals and comparisons over samples that belong together."""

import numpy as np
import pytest

from sslkit.evaluation.statistics import Totals, compare_ratios


def test_ratios_are_compared_over_the_same_samples() -> None:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 20, size=200).astype(float)
    better, worse = (np.floor(share * sizes) for share in (random.uniform(0.6, 1, 200), random.uniform(0.4, 0.9, 200)))
    comparison = compare_ratios(Totals(better, sizes), Totals(worse, sizes), "sentences")
    expected = (better.sum() - worse.sum()) / sizes.sum()
    assert comparison.difference == pytest.approx(expected) and comparison.method.startswith("paired bootstrap over sentences")
    assert comparison.low is not None and comparison.high is not None
    assert 0 < comparison.low < expected < comparison.high and comparison.p_value < 0.01
    deviation = np.std(
        [(better - worse)[places].sum() / sizes[places].sum() for places in random.integers(200, size=(500, 200))]
    )
    assert comparison.high - comparison.low == pytest.approx(2 * 1.96 * deviation, rel=0.15)
    same = compare_ratios(Totals(better, sizes), Totals(better, sizes))
    assert (same.difference, same.p_value) == (0, 1)
    assert Totals(np.zeros(3), np.zeros(3)).ratio(np.zeros((2, 3), dtype=np.int64)).tolist() == [0, 0]
