"""Accuracies, intervals and tests, against scikit-learn, scipy and by hand."""

import itertools
import time

import numpy as np
import pytest
import torch

from sslkit.contract.result import Comparison, Metric, Row
from sslkit.evaluation import statistics
from sslkit.evaluation.metrics import average_precision, classification, is_correct, precision_at, precision_by_class
from sslkit.evaluation.statistics import adjust_comparisons, adjust_holm, interval_of_mean, mcnemar


def test_accuracies_are_scikit_learns() -> None:
    from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, recall_score, top_k_accuracy_score

    generator = torch.Generator().manual_seed(0)
    scores, labels = torch.randn(300, 7, generator=generator), torch.randint(0, 7, (300,), generator=generator)
    scores[torch.arange(300), labels] += 1
    (metrics, by_class), predicted = classification(scores, labels, tuple("abcdefg")), scores.argmax(dim=1)
    assert metrics["top-1"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["top-5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert metrics["macro F1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["balanced accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert list(by_class.values()) == pytest.approx(recall_score(labels, predicted, average=None).tolist())


def test_two_classes_have_matthews_correlation() -> None:
    from sklearn.metrics import matthews_corrcoef

    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 2, (200,), generator=generator)
    scores = torch.randn(200, 2, generator=generator) + 0.7 * torch.nn.functional.one_hot(labels, 2)
    metrics, _ = classification(scores, labels, ("a", "b"))
    assert metrics["MCC"] == pytest.approx(matthews_corrcoef(labels, scores.argmax(dim=1)))
    assert classification(torch.tensor([[1.0, 0.0]] * 200), labels, ("a", "b"))[0]["MCC"] == 0.0


def test_classes_that_are_not_in_the_test_part() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
    metrics, by_class = classification(scores, torch.tensor([0, 1]), ("a", "b", "c"))
    assert by_class == {"a": 1.0, "b": 0.0, "c": None}
    assert metrics["balanced accuracy"] == 0.5 and "top-5" not in metrics
    assert metrics["macro F1"] == pytest.approx((2 / 3 + 0) / 2)


def test_a_tie_does_not_count_for_top5() -> None:
    votes = torch.tensor([[3.0, 1.0, 0, 0, 0, 0, 0, 0]])  # six classes have no vote at all
    assert classification(votes, torch.tensor([4]), tuple("abcdefgh"))[0]["top-5"] == 0.0
    assert classification(votes, torch.tensor([1]), tuple("abcdefgh"))[0]["top-5"] == 1.0


def test_interval_of_a_share_is_the_binomials() -> None:
    from scipy.stats import binom

    hits = torch.cat([torch.ones(130), torch.zeros(270)]).double()
    low, high, method = interval_of_mean(hits)
    expected = binom.ppf([0.025, 0.975], 400, 130 / 400) / 400  # resampling zeros and ones is drawing from it
    assert [low, high] == pytest.approx(expected.tolist(), abs=0.006)
    assert interval_of_mean(hits) == (low, high, method) and method.startswith("bootstrap")


def test_zeros_and_ones_are_resampled_by_their_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The intervals of 0 and 1 come from the binomial distribution; others from resampling, whatever the blocks."""
    hits = torch.cat([torch.ones(600), torch.zeros(200)]).double()
    almost = hits.clone()
    almost[0] = 1 - 1e-12  # no longer 0 or 1
    assert interval_of_mean(hits)[:2] == pytest.approx(interval_of_mean(almost)[:2], abs=0.003)
    values = torch.rand(700, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rng, samples = np.random.default_rng(0), values.numpy()
    means = [samples[rng.integers(700, size=700)].mean() for _ in range(2000)]
    monkeypatch.setattr(statistics, "_BLOCK", 700 * 7)
    assert interval_of_mean(values)[:2] == pytest.approx(np.percentile(means, [2.5, 97.5]), abs=1e-12)
    started_at = time.perf_counter()
    interval_of_mean(torch.arange(50_000).remainder(3).eq(0).double())
    assert time.perf_counter() - started_at < 0.5  # 4.5 s by resampling


@pytest.mark.parametrize("n", [1, 5, 500])
def test_all_correct_or_none_is_not_certain(n: int) -> None:
    from scipy.stats import binomtest

    for value in (0, 1):
        low, high, method = interval_of_mean(torch.full((n,), float(value)).double())
        exact = binomtest(value * n, n).proportion_ci(0.95, "exact")
        assert (low, high) == pytest.approx((exact.low, exact.high)) and method.startswith("exact")
    low, high, method = interval_of_mean(torch.full((4,), 0.5).double())  # no share of 0 and 1: nothing is known of its spread
    assert low == high == 0.5 and method.startswith("bootstrap")


def test_mcnemar_by_hand() -> None:
    first = torch.tensor([1, 1, 1, 1, 1, 1, 0, 1, 0]).double()
    second = torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 0]).double()  # 5 against 1 of 6 that differ
    assert mcnemar(first, second) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(first, first) == 1.0


@pytest.mark.parametrize("levels", [None, 3, 10])
def test_average_precision_is_scikit_learns(levels: int | None) -> None:
    from sklearn.metrics import average_precision_score

    rng = np.random.default_rng(0)
    scores, relevant = rng.normal(size=(4, 60)), rng.random((4, 60)) < 0.3
    if levels is not None:
        scores = rng.integers(levels, size=(4, 60)).astype(float)  # heavy ties
    expected = [average_precision_score(truth, score) for truth, score in zip(relevant, scores, strict=True)]
    tensors = torch.from_numpy(scores.T), torch.from_numpy(relevant.T).long()
    assert precision_by_class(*tensors) == pytest.approx(expected)
    order = torch.from_numpy(rng.permutation(60))
    assert precision_by_class(*(tensor[order] for tensor in tensors)) == precision_by_class(*tensors)
    shared = torch.from_numpy(relevant[0]).nonzero()[:, 0]
    expected_of_shared = [average_precision_score(relevant[0], score) for score in scores]
    assert average_precision(torch.from_numpy(scores), shared).tolist() == pytest.approx(expected_of_shared)
    metrics, _ = classification(*tensors, classes=tuple("abcd"))
    assert metrics["mAP"] == pytest.approx(np.mean(expected)) and "macro F1" not in metrics
    first = [relevant.T[row, scores.T[row].argmax()] for row in range(60)]
    assert metrics["top-1"] == pytest.approx(np.mean(first))
    assert precision_by_class(torch.rand(3, 2), torch.tensor([[1, 0], [0, 0], [0, 0]]))[1] is None
    assert average_precision(torch.rand(1, 5), torch.empty(0, dtype=torch.int64)).tolist() == [0.0]


@pytest.mark.parametrize("k", [1, 3, 10])
def test_precision_with_ties_is_the_mean_over_orders(k: int) -> None:
    scores, relevant = torch.tensor([[2.0, 2.0, 1.0, 1.0, 1.0, 0.0]]), torch.tensor([1, 2, 5])
    precisions = []
    for order in itertools.permutations(range(6)):
        ranked = sorted(order, key=lambda place: -float(scores[0, place]))  # stable: ties stay in this order
        precisions.append(np.mean([place in relevant.tolist() for place in ranked[:k]]))
    assert precision_at(scores, relevant, k).tolist() == pytest.approx([np.mean(precisions)])


def test_the_first_of_a_tie_wins() -> None:
    assert is_correct(torch.tensor([[1.0, 1.0], [0.0, 2.0]]), torch.tensor([0, 0])).tolist() == [1.0, 0.0]


def test_holm_by_hand() -> None:
    # 4 * 0.005 = 0.02; 3 * 0.01 = 0.03; 2 * 0.03 = 0.06; 1 * 0.04 = 0.04, but never less than the one before.
    assert adjust_holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert adjust_holm([0.6, 0.7]) == [1.0, 1.0] and adjust_holm([]) == []


def test_comparisons_of_a_result_are_adjusted_together() -> None:
    metrics = [Metric("top-1", 0.5)]
    comparisons = [{"checkpoint": Comparison(p_value, "McNemar's exact test")} for p_value in (0.04, 0.01)]
    rows = [Row("checkpoint", metrics), *(Row("other", metrics, comparisons=comparison) for comparison in comparisons)]
    adjusted = [row.comparisons["checkpoint"].adjusted for row in adjust_comparisons(rows) if row.comparisons]
    assert adjusted == pytest.approx([0.04, 0.02])
