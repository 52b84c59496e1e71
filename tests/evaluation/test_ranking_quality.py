"""The area under the ROC curve: scikit-learn's, also in resamples."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from sslkit.evaluation.ranking_quality import Ranking


@pytest.mark.parametrize("digits", [1, 8])  # with many ties, and without
def test_areas_are_those_of_scikit_learn(digits: int) -> None:
    random = np.random.default_rng(0)
    positive = random.random(80) < 0.3
    scores = np.round(random.random(80) + 0.4 * positive, digits)
    ranking = Ranking(scores, positive)
    assert ranking.area() == pytest.approx(roc_auc_score(positive, scores))
    weights = random.integers(0, 4, (5, 80))
    for row in weights:
        assert ranking.area(row) == pytest.approx(roc_auc_score(positive, scores, sample_weight=row))


def test_intervals_hold_both_kinds_and_differences_are_paired() -> None:
    random = np.random.default_rng(1)
    positive = np.arange(200) < 20
    noise = random.standard_normal(200)
    better, worse = (Ranking(noise + gain * positive, positive) for gain in (2.0, 1.6))
    metric = better.metric("AUROC")
    assert metric.low is not None and metric.high is not None and metric.low < metric.value < metric.high <= 1
    comparison = better.compare(worse)
    assert comparison.difference == pytest.approx(better.area() - worse.area())
    assert comparison.low is not None and comparison.low > 0 and comparison.p_value < 0.05
    perfect = Ranking(positive.astype(float), positive).metric("AUROC")
    assert (perfect.value, perfect.low, perfect.high) == (1, 1, 1)
