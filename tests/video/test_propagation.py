"""Labels carried from frame to frame, against loops, and scores of masks."""

import math

import numpy as np
import pytest
import torch

from sslkit.video.propagation import Propagation, boundary_accuracy, region_similarity, to_labels, to_mask


def test_labels_come_from_the_most_similar_places_around() -> None:
    torch.manual_seed(0)
    rule = Propagation(context=2, radius=2, neighbors=3, temperature=0.1)
    maps, first = torch.randn(5, 6, 4, 5), torch.rand(2, 4, 5)
    results = list(rule.run(maps, first))
    assert len(results) == 4
    vectors = maps / maps.norm(dim=1, keepdim=True)
    known = [first]
    for number in range(1, 5):
        sources = sorted({0, *range(max(1, number - 2), number)})
        labels = torch.zeros(2, 4, 5)
        for row in range(4):
            for column in range(5):
                similar = [
                    (float(vectors[number, :, row, column] @ vectors[source, :, y, x]), known[source][:, y, x])
                    for source in sources
                    for y in range(4)
                    for x in range(5)
                    if max(abs(y - row), abs(x - column)) <= 2
                ]
                best = sorted(similar, key=lambda pair: -pair[0])[:3]
                weights = [math.exp(cosine / 0.1) for cosine, _ in best]
                labels[:, row, column] = sum(w * label for w, (_, label) in zip(weights, best, strict=True)) / sum(weights)
        assert torch.allclose(results[number - 1], labels, atol=1e-4)
        known.append(results[number - 1])


def test_a_moving_object_with_features_of_its_own_is_followed() -> None:
    frames, truth = [], []
    for time in range(4):
        mask = np.zeros((32, 32), dtype=np.uint8)
        mask[8:16, 4 * time : 4 * time + 8] = 3
        truth.append(mask)
        small = torch.from_numpy(mask[::4, ::4] > 0).float()
        frames.append(torch.stack([small, 1 - small]))
    rule = Propagation(context=7, radius=12, neighbors=5, temperature=0.1)
    first = to_labels(truth[0], [3], (8, 8))
    for number, labels in enumerate(rule.run(frames, first), start=1):
        mask = to_mask(labels, [3], (32, 32))
        assert region_similarity(mask == 3, truth[number] == 3) > 0.7


def test_labels_of_masks_are_shares_and_go_back() -> None:
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[:4, :4], mask[4:, 4:], mask[0, 7] = 1, 7, 9
    labels = to_labels(mask, [1, 7], (4, 4))
    assert torch.allclose(labels.sum(dim=0), torch.ones(4, 4)) and labels[1, 0, 0] == 1 and labels[2, 3, 3] == 1
    again = to_mask(labels, [1, 7], (8, 8))
    assert set(np.unique(again)) == {0, 1, 7} and (again == mask).mean() > 0.9


def test_scores_of_masks() -> None:
    true = np.zeros((100, 100), dtype=bool)
    true[20:60, 20:60] = True
    moved = np.roll(true, 20, axis=1)
    assert region_similarity(true, true) == boundary_accuracy(true, true) == 1
    assert region_similarity(moved, true) == pytest.approx(40 * 20 / (40 * 60))
    near = np.roll(true, 1, axis=1)  # within the tolerance of 2 px
    assert boundary_accuracy(near, true) == 1 and boundary_accuracy(np.roll(true, 30, axis=0), true) < 0.3
    empty = np.zeros_like(true)
    assert region_similarity(empty, empty) == boundary_accuracy(empty, empty) == 1
    assert region_similarity(empty, true) == boundary_accuracy(empty, true) == boundary_accuracy(true, empty) == 0
