"""Quantization of colors into the bins of the ab plane that colorization tasks predict."""

from functools import cache

import torch
from torch import Tensor

from sslkit.image.transforms.color import rgb_to_lab

_MAX_DISTANCES = 2**24  # computed at once, to bound memory


_GRID = 10  # side of a bin in a and b (Zhang et al., 2016, section 2)


@cache
def ab_bins() -> Tensor:
    """Return the centers `[Q, 2]` of the 261 bins of the ab plane, 10 wide, that contain an sRGB color.

    Computed from a cube of 64³ colors, which reaches every bin that all 256³ colors reach. (The authors' file has 313 bins,
    including some that no sRGB color falls into.)
    """
    steps = torch.linspace(0, 1, 64)
    colors = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, -1, 1)
    cells = (rgb_to_lab(colors)[0, 1:, :, 0] / _GRID).round()
    occupied: Tensor = torch.unique(cells, dim=1)
    return occupied.T.contiguous() * _GRID


def nearest_bin(ab: Tensor, bins: Tensor) -> Tensor:
    """Return the index of the nearest of bins `[Q, 2]` for each position of `[B, 2, h, w]`, int64 `[B, h, w]`."""
    nearest, _ = _nearest(ab, bins, 1)
    return nearest[..., 0]


def soft_bins(ab: Tensor, bins: Tensor, neighbors: int = 5, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
    """Return the nearest of bins `[Q, 2]` for each position of `[B, 2, h, w]`, nearest first, and their weights.

    int64 and float `[B, h, w, neighbors]`; the weights are Gaussian in the distance and sum to 1 (soft encoding; Zhang et
    al., 2016, section 2.1: 5 neighbors, σ = 5).
    """
    nearest, distance = _nearest(ab, bins, neighbors)
    return nearest, torch.softmax(-(distance**2) / (2 * sigma**2), dim=3)


def rarity_weights(prior: Tensor, uniform: float = 0.5) -> Tensor:
    """Return loss weights of the bins `[Q]`, larger for rare colors, with mean 1 under the prior `[Q]`.

    The inverse of the prior blended with a fraction `uniform` of a uniform one (Zhang et al., 2016, equation 4: λ = 0.5).
    """
    weights = 1 / ((1 - uniform) * prior + uniform / len(prior))
    return weights / (prior * weights).sum()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """Return colors `[B, 2, h, w]` from logits `[B, Q, h, w]`: the mean of the distribution sharpened by `temperature`.

    (Zhang et al., 2016, equation 5: T = 0.38, between the mean, which is gray, and the mode, which is spotty.)
    """
    probabilities = torch.softmax(logits / temperature, dim=1)
    return torch.einsum("bqhw,qc->bchw", probabilities, bins.to(probabilities.dtype))


def _nearest(ab: Tensor, bins: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the nearest bins for each position of `[B, 2, h, w]` and their distances, `[B, h, w, count]`, in chunks."""
    positions = ab.permute(0, 2, 3, 1)
    chunks = positions.flatten(0, 2).split(max(1, _MAX_DISTANCES // len(bins)))
    neighbors = [torch.cdist(chunk, bins.to(ab.dtype)).topk(count, dim=1, largest=False) for chunk in chunks]
    distance, nearest = (torch.cat(values).unflatten(0, positions.shape[:3]) for values in zip(*neighbors, strict=True))
    return nearest, distance
