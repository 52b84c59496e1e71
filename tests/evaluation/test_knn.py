"""k-NN: the same answers as a naive loop and as scikit-learn, whatever the chunks."""

import math

import numpy as np
import pytest
import torch

import sslkit.evaluation.knn as module
from sslkit import SslkitError
from sslkit.evaluation.knn import draw_shots, largest, votes


def test_weighted_votes_against_a_naive_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHUNK", 60 * 5)  # five queries at a time
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 5, generator=generator), torch.randn(17, 5, generator=generator)
    labels = torch.randint(0, 4, (60,), generator=generator)
    ours = votes(train, labels, test, k=7, temperature=0.1, classes=4)
    for query, predicted in zip(test, ours, strict=True):
        similar = sorted(
            ((float(torch.cosine_similarity(query, row, dim=0)), int(label)) for row, label in zip(train, labels, strict=True)),
            reverse=True,
        )
        counted = [0.0] * 4
        for similarity, label in similar[:7]:
            counted[label] += math.exp(similarity / 0.1)
        assert predicted.argmax() == counted.index(max(counted))
        expected = torch.tensor(counted) / math.exp(similar[0][0] / 0.1)  # votes count relative to the nearest
        torch.testing.assert_close(predicted, expected.float(), rtol=1e-4, atol=1e-6)


def test_plain_votes_against_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    train, test, labels = rng.normal(size=(700, 16)), rng.normal(size=(200, 16)), rng.integers(0, 5, 700)
    normalized_train, normalized_test = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (train, test))
    theirs = KNeighborsClassifier(20, algorithm="brute").fit(normalized_train, labels).predict(normalized_test)
    ours = votes(torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test), 20, None, 5).argmax(dim=1)
    assert np.array_equal(ours.numpy(), theirs)


@pytest.mark.parametrize(("count", "k"), [(5000, 20), (5003, 7), (5003, 200), (40, 40), (33, 1)])
def test_largest_is_topk(count: int, k: int) -> None:
    values = torch.randn(11, count, generator=torch.Generator().manual_seed(count))
    top_values, places = largest(values, k)
    expected = values.topk(k, dim=1)
    assert torch.equal(top_values, expected.values) and torch.equal(places, expected.indices)


def test_shots_are_balanced_seeded_and_bounded() -> None:
    labels = torch.tensor([0] * 9 + [1] * 4)
    indices = draw_shots(labels, 3, seed=1, classes=("a", "b"))
    assert labels[indices].tolist() == [0, 0, 0, 1, 1, 1] and len(set(indices.tolist())) == 6
    assert torch.equal(indices, draw_shots(labels, 3, 1, ("a", "b")))
    assert not torch.equal(indices, draw_shots(labels, 3, 2, ("a", "b")))
    with pytest.raises(SslkitError, match="5 exceeds the 4 training samples of class b"):
        draw_shots(labels, 5, 1, ("a", "b"))
