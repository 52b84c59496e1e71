"""Colors as classes, against loops and against the formulae of scikit-image."""

import math

import numpy as np
import pytest
import torch

from sslkit.image.color_bins import ab_bins, annealed_mean, rarity_weights, soft_bins
from sslkit.image.transforms import lab_to_rgb, rgb_to_lab


def naive_lab(rgb: tuple[float, float, float]) -> list[float]:
    """Return what scikit-image's rgb2lab computes (D65, 2 degrees), in float64."""
    linear = [((value + 0.055) / 1.055) ** 2.4 if value > 0.04045 else value / 12.92 for value in rgb]
    matrix = [(0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227)]
    xyz = [sum(weight * value for weight, value in zip(row, linear, strict=True)) for row in matrix]
    ratios = [value / white for value, white in zip(xyz, (0.95047, 1.0, 1.08883), strict=True)]
    x, y, z = (value ** (1 / 3) if value > 0.008856 else 7.787 * value + 16 / 116 for value in ratios)
    return [116 * y - 16, 500 * (x - y), 200 * (y - z)]


def test_lab_is_that_of_scikit_image_and_comes_back() -> None:
    rng = np.random.default_rng(0)
    colors = [*rng.random((300, 3)).tolist(), *(rng.random((50, 3)) * 0.05).tolist(), [0, 0, 0], [1, 1, 1], [1, 0, 0]]
    image = torch.tensor(colors, dtype=torch.float32).T.view(1, 3, 1, -1)
    lab = rgb_to_lab(image)
    expected = torch.tensor([naive_lab(color) for color in colors]).T.view(1, 3, 1, -1)
    assert float((lab - expected).abs().max()) < 1e-3
    assert float((lab_to_rgb(lab) - image).abs().max()) < 1e-3


def test_colors_outside_srgb_are_clamped() -> None:
    rgb = lab_to_rgb(torch.tensor([50.0, 120, -120]).view(1, 3, 1, 1))
    assert float(rgb.min()) >= 0 and float(rgb.max()) <= 1


def test_soft_bins_against_a_loop() -> None:
    bins, ab = ab_bins(), 60 * (torch.rand(2, 2, 3, 3) - 0.5)
    nearest, shares = soft_bins(ab, bins)
    assert nearest.shape == shares.shape == (2, 3, 3, 5)
    for sample in range(2):
        for row in range(3):
            for column in range(3):
                place = ab[sample, :, row, column]
                distance = [math.dist(place.tolist(), center) for center in bins.tolist()]
                five = sorted(range(len(bins)), key=distance.__getitem__)[:5]
                weights = [math.exp(-(distance[index] ** 2) / 50) for index in five]
                assert nearest[sample, row, column].tolist() == five
                expected = torch.tensor([weight / sum(weights) for weight in weights])
                assert torch.allclose(shares[sample, row, column], expected, atol=1e-4)


def test_rare_colors_weigh_more() -> None:
    prior = torch.tensor([0.7, 0.2, 0.1, 0.0])
    weights = rarity_weights(prior)
    assert float((prior * weights).sum()) == pytest.approx(1)
    for place, share in enumerate(prior.tolist()):
        ratio = (0.5 * 0.7 + 0.5 / 4) / (0.5 * share + 0.5 / 4)  # against the most frequent
        assert float(weights[place] / weights[0]) == pytest.approx(ratio, rel=1e-5)
    assert torch.allclose(rarity_weights(prior, uniform=1.0), torch.ones(4))


def test_annealed_mean_lies_between_mean_and_mode() -> None:
    bins = torch.tensor([[0.0, 0.0], [100.0, 0.0]])
    logits = torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)
    mean, annealed, mode = (float(annealed_mean(logits, bins, t)[0, 0]) for t in (1.0, 0.38, 1e-3))
    assert mean == pytest.approx(100 / (1 + math.exp(-1)), rel=1e-4) and mode == pytest.approx(100)
    assert annealed == pytest.approx(100 / (1 + math.exp(-1 / 0.38)), rel=1e-4) and mean < annealed < mode
