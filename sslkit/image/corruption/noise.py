"""Noise of sensors."""

import torch
from torch import Tensor

from sslkit.image.corruption.level import Draws, Level


def gaussian_noise(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Add normal noise to every value, as low light does."""
    deviation = level.choose((0.04, 0.06, 0.08, 0.09, 0.10), (0.08, 0.12, 0.18, 0.26, 0.38))
    return images + deviation * draws.normal(*images.shape[1:])


def shot_noise(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Replace values by Poisson counts, as few photons do."""
    photons = level.choose((500, 250, 100, 75, 50), (60, 25, 12, 5, 3))
    return draws.poisson(images * photons) / photons


def impulse_noise(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Set a share of the values to black or white, as bit errors do."""
    share = level.choose((0.01, 0.02, 0.03, 0.05, 0.07), (0.03, 0.06, 0.09, 0.17, 0.27))
    chance = draws.uniform(0, 1, *images.shape[1:])
    return torch.where(chance < share / 2, 0.0, torch.where(chance < share, 1.0, images))
