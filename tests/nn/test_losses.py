"""Losses of contrastive and joint-embedding tasks against naive loops; the memory bank."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.nn import (
    MemoryBank,
    MemoryBankOptions,
    barlow_twins,
    in_batch_info_nce,
    info_nce,
    jensen_shannon,
    margin_loss,
    msn,
    negative_cosine,
    noise_contrastive,
    swapped_prediction,
    vicreg,
)


def unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double), dim=-1)


def assert_close(value: Tensor, expected: float) -> None:
    assert float(value) == pytest.approx(expected, rel=1e-9)


def dot(first: Tensor, second: Tensor) -> float:
    return sum(float(a) * float(b) for a, b in zip(first, second, strict=True))


def test_in_batch_info_nce() -> None:
    query, key = unit(5, 7), unit(5, 7, seed=1)
    for i, loss in enumerate(in_batch_info_nce(query, key, 0.2)):
        scores = [math.exp(dot(query[i], other) / 0.2) for other in key]
        assert_close(loss, -math.log(scores[i] / sum(scores)))


def test_info_nce_ignores_negatives_that_are_the_key() -> None:
    query, key, negatives = unit(3, 7), unit(3, 7, seed=1), unit(4, 7, seed=2)
    same = torch.zeros(3, 4, dtype=torch.bool)
    same[1, 2] = True
    for i, loss in enumerate(info_nce(query, key, negatives, 0.3, same)):
        positive = math.exp(dot(query[i], key[i]) / 0.3)
        others = [math.exp(dot(query[i], other) / 0.3) for j, other in enumerate(negatives) if not same[i, j]]
        assert_close(loss, -math.log(positive / (positive + sum(others))))


def test_noise_contrastive_is_logistic_regression_of_the_key_against_noise() -> None:
    key, noise = torch.tensor([1.0, -0.5], dtype=torch.double), torch.tensor([[0.3, -2], [0.1, -torch.inf]], dtype=torch.double)
    losses = noise_contrastive(key, noise, log_normalizer=0.7)

    def probability(score: float) -> float:  # of being the key: P / (P + m/N), P = exp(score) / Z
        return math.exp(score) / (math.exp(score) + math.exp(0.7))

    assert_close(losses[0], -math.log(probability(1.0)) - math.log(1 - probability(0.3)) - math.log(1 - probability(-2)))
    assert_close(losses[1], -math.log(probability(-0.5)) - math.log(1 - probability(0.1)))


def test_margin_loss() -> None:
    first, second = unit(4, 3), unit(4, 3, seed=1)
    distance = [[math.dist(a.tolist(), b.tolist()) for b in second] for a in first]
    terms = margin_loss(first, second, margin=1.2)
    assert_close(terms["same"], sum(distance[i][i] ** 2 for i in range(4)) / 8)
    apart = [max(0.0, 1.2 - distance[i][j]) ** 2 for i in range(4) for j in range(4) if i != j]
    assert 0 < sum(value > 0 for value in apart) < 12
    assert_close(terms["other"], sum(apart) / 24)


def test_margin_loss_of_equal_vectors_has_a_gradient() -> None:
    vectors = torch.ones(3, 4).requires_grad_()
    sum(margin_loss(vectors, vectors, 1.0).values(), torch.zeros(())).backward()
    assert vectors.grad is not None and vectors.grad.isfinite().all()


def test_negative_cosine() -> None:
    prediction, target = 3 * unit(2, 4, 5), unit(2, 4, 5, seed=1) / 2
    expected = [
        -dot(p, t) / (float(p.norm()) * float(t.norm()))
        for p, t in zip(prediction.flatten(0, 1), target.flatten(0, 1), strict=True)
    ]
    assert_close(negative_cosine(prediction, target), sum(expected) / 8)


def test_barlow_twins() -> None:
    first, second = unit(6, 3), unit(6, 3, seed=1)

    def correlation(i: int, j: int) -> float:
        a, b = first[:, i], second[:, j]
        a, b = a - a.mean(), b - b.mean()
        # BatchNorm, which the authors normalize with, adds 1e-5 to variances.
        deviations = math.sqrt((float(a.square().mean()) + 1e-5) * (float(b.square().mean()) + 1e-5))
        return dot(a, b) / 6 / deviations

    terms = barlow_twins(first, second, redundancy=0.1)
    assert_close(terms["invariance"], sum((correlation(i, i) - 1) ** 2 for i in range(3)))
    assert_close(terms["redundancy"], 0.1 * sum(correlation(i, j) ** 2 for i in range(3) for j in range(3) if i != j))


def test_vicreg() -> None:
    first, second = unit(6, 3), 2 * unit(6, 3, seed=1)

    def covariance(view: Tensor, i: int, j: int) -> float:
        return dot(view[:, i] - view[:, i].mean(), view[:, j] - view[:, j].mean()) / 5

    terms = vicreg(first, second, deviation=1.0)
    distances = [(float(a) - float(b)) ** 2 for a, b in zip(first.flatten(), second.flatten(), strict=True)]
    assert_close(terms["invariance"], sum(distances) / 18)
    hinges = [max(0.0, 1 - math.sqrt(covariance(view, i, i) + 1e-4)) for view in (first, second) for i in range(3)]
    assert_close(terms["variance"], sum(hinges) / 6)
    others = [covariance(view, i, j) ** 2 for view in (first, second) for i in range(3) for j in range(3) if i != j]
    assert_close(terms["covariance"], sum(others) / 3)


def test_swapped_prediction_is_dinos_loss() -> None:
    student, teacher = unit(3, 5, 4), unit(3, 2, 4, seed=1)
    expected, pairs = 0.0, 0
    for a in range(2):
        for v in range(5):
            if a != v:
                pairs += 1
                for b in range(3):
                    target, log_probs = (teacher[b, a] / 0.04).softmax(0), (student[b, v] / 0.1).log_softmax(0)
                    expected -= dot(target, log_probs) / 3
    assert_close(swapped_prediction(student, (teacher / 0.04).softmax(2), 0.1), expected / pairs)


def test_msn() -> None:
    scores, target = torch.randn(5, 3, 4, dtype=torch.double), torch.randn(5, 4, dtype=torch.double).softmax(dim=1)
    probs = [[[math.exp(float(s) / 0.5) for s in view] for view in image] for image in scores]
    probs = [[[s / sum(view) for s in view] for view in image] for image in probs]
    cross = [-sum(float(t) * math.log(s) for t, s in zip(target[b], view, strict=True)) for b in range(5) for view in probs[b]]
    mean = [sum(probs[b][v][k] for b in range(5) for v in range(3)) / 15 for k in range(4)]
    terms = msn(scores, target, 0.5)
    assert_close(terms["cross_entropy"], sum(cross) / 15)
    assert_close(terms["entropy_gap"], math.log(4) + sum(m * math.log(m) for m in mean))
    certain = torch.tensor([[[1000.0, 0.0]]])
    assert float(msn(certain, torch.tensor([[1.0, 0.0]]), 1.0)["entropy_gap"]) == pytest.approx(math.log(2))  # 0 log 0


def test_jensen_shannon() -> None:
    scores = 3 * unit(4, 4)
    same = torch.eye(4, dtype=torch.bool)
    positive = [math.log1p(math.exp(-float(scores[i, i]))) for i in range(4)]
    negative = [math.log1p(math.exp(float(scores[i, j]))) for i in range(4) for j in range(4) if i != j]
    assert_close(jensen_shannon(scores, same), sum(positive) / 4 + sum(negative) / 12)


def test_bank_keeps_a_moving_average_of_unit_length() -> None:
    torch.manual_seed(0)
    bank, vectors = MemoryBank(6, MemoryBankOptions(width=4, negatives=6, momentum=0.25)), F.normalize(torch.randn(2, 4), dim=1)
    before = bank.rows.clone()
    bank.update(torch.tensor([5, 2]), vectors)
    expected = 0.25 * before[2] + 0.75 * vectors[1]
    assert torch.allclose(bank.rows[2], expected / expected.norm(), atol=1e-6)
    assert torch.equal(bank.rows[[0, 1, 3, 4]], before[[0, 1, 3, 4]]) and "rows" in bank.state_dict()


def test_bank_negatives_depend_on_the_random_state_and_exclude_the_sample() -> None:
    def after_a_step(seed: int) -> MemoryBank:
        torch.manual_seed(seed)
        bank = MemoryBank(50, MemoryBankOptions(width=4, negatives=20, temperature=0.1))
        first = bank.negatives.clone()
        bank.update(torch.tensor([0]), torch.ones(1, 4))
        assert not torch.equal(bank.negatives, first)
        return bank

    bank = after_a_step(0)
    negatives = bank.negatives
    assert torch.equal(negatives, after_a_step(0).negatives) and not torch.equal(negatives, after_a_step(1).negatives)
    assert len(negatives) == 20 and "negatives" in bank.state_dict()
    assert MemoryBank(50, MemoryBankOptions(width=4, negatives=999)).negatives.tolist() == list(range(50))
    query, index = F.normalize(torch.randn(3, 4), dim=1), negatives[[4, 7, 9]]
    positive, negative = bank.scores(query, index)
    assert torch.allclose(positive, (query * bank.rows[index]).sum(dim=1) / 0.1)
    assert torch.equal(negative.isinf(), index[:, None] == negatives)
    assert float(negative[0, 0]) == pytest.approx(float(query[0] @ bank.rows[negatives[0]]) / 0.1, rel=1e-5)


def test_bank_log_normalizer_matches_random_scores() -> None:
    torch.manual_seed(0)
    bank = MemoryBank(20001, MemoryBankOptions(width=8, negatives=20000, temperature=0.2, loss="nce"))
    estimate = torch.logsumexp(bank.rows.double() @ F.normalize(torch.randn(8, dtype=torch.double), dim=0) / 0.2, 0)
    assert bank.log_normalizer == pytest.approx(float(estimate), abs=0.05)


@pytest.mark.parametrize("loss", ["softmax", "nce"])
def test_bank_losses_against_loops(loss: str) -> None:
    bank = MemoryBank(9, MemoryBankOptions(width=4, negatives=99, temperature=0.5, loss=loss)).double()
    query, index = F.normalize(torch.randn(3, 4, dtype=torch.double), dim=1), torch.tensor([2, 0, 7])
    for row, value in zip(index.tolist(), bank.losses(query, index).tolist(), strict=True):
        scores = [dot(query[index.tolist().index(row)], bank.rows[other]) / 0.5 for other in range(9)]
        others = [score for other, score in enumerate(scores) if other != row]
        if loss == "softmax":
            expected = -math.log(math.exp(scores[row]) / sum(map(math.exp, scores)))
        else:
            odds = [math.exp(score - bank.log_normalizer) for score in (scores[row], *others)]
            expected = -math.log(odds[0] / (1 + odds[0])) - sum(math.log(1 / (1 + odd)) for odd in odds[1:])
        assert value == pytest.approx(expected)
