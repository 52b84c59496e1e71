"""Effective robustness: models on the baselines' line have none, others what they are above it."""

import numpy as np
import pytest

from sslkit.evaluation.effective_robustness import ShiftAnswers

COUNT = 4000


def answers(shares: list[float]) -> np.ndarray:
    """Return for each share as many ones, `[P, COUNT]`, in random places."""
    random = np.random.default_rng(0)
    return np.stack([random.permutation(np.arange(COUNT) < round(share * COUNT)) for share in shares]).astype(np.float64)


def on_line(share: float) -> float:
    """Return what a line in log-odds predicts."""
    return float(1 / (1 + np.exp(-(0.8 * np.log(share / (1 - share)) - 0.5))))


@pytest.mark.parametrize("beyond", [0.0, 0.05, -0.1])
@pytest.mark.parametrize("paired", [True, False])
def test_what_is_planted_above_the_line_is_found(beyond: float, paired: bool) -> None:
    clean = [0.7, 0.3, 0.45, 0.55, 0.8, 0.9]
    shifted = [on_line(0.7) + beyond, *map(on_line, clean[1:])]
    metric = ShiftAnswers(answers(clean), answers(shifted), paired).metric()
    assert metric is not None and metric.value == pytest.approx(beyond, abs=2e-3)
    assert metric.low is not None and metric.high is not None and metric.low < metric.value < metric.high
    assert metric.high - metric.low < 0.08


def test_the_line_is_that_of_least_squares() -> None:
    clean, shifted = [0.6, 0.2, 0.35, 0.5, 0.75], [0.5, 0.15, 0.3, 0.35, 0.7]
    metric = ShiftAnswers(answers(clean), answers(shifted), paired=True).metric()
    x, y = (np.log(np.array(values) / (1 - np.array(values))) for values in (clean, shifted))
    slope, offset = np.polyfit(x[1:], y[1:], 1)
    assert metric is not None and metric.value == pytest.approx(0.5 - 1 / (1 + np.exp(-(slope * x[0] + offset))), abs=1e-6)


def test_few_or_equal_baselines_give_none() -> None:
    assert ShiftAnswers(answers([0.7, 0.3, 0.5, 0.9]), answers([0.6, 0.2, 0.4, 0.8]), True).metric() is None
    close = [0.7, 0.50, 0.52, 0.54, 0.56]
    assert ShiftAnswers(answers(close), answers(close), True).metric() is None
    assert ShiftAnswers(answers([1.0, 0.0, 0.5, 0.9, 1.0]), answers([1.0, 0.0, 0.4, 0.8, 1.0]), True).metric() is not None
