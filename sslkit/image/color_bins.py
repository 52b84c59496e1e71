"""Colors as classes."""

from functools import cache

import torch
from torch import Tensor

from sslkit.image.transforms.color import rgb_to_lab

_AT_ONCE = 2**24  # distances in memory


_GRID = 10  # side of a cell in a and b (Zhang et al., 2016, section 2)


@cache
def ab_bins() -> Tensor:
    """Return the centers `[Q, 2]` of the cells in the ab plane, 10 wide, that some sRGB color falls into: 261.

    Computed from a cube of 64³ colors, which meets every cell that all 256³ colors meet. (The authors' file has 313: it
    counts more than the colors that there are.)
    """
    steps = torch.linspace(0, 1, 64)
    colors = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, -1, 1)
    cells = (rgb_to_lab(colors)[0, 1:, :, 0] / _GRID).round()
    there: Tensor = torch.unique(cells, dim=1)
    return there.T.contiguous() * _GRID


def nearest_bin(ab: Tensor, bins: Tensor) -> Tensor:
    """Return the nearest of the bins `[Q, 2]` for each place of `[B, 2, h, w]`, int64 `[B, h, w]`."""
    nearest, _ = _nearest(ab, bins, 1)
    return nearest[..., 0]


def soft_bins(ab: Tensor, bins: Tensor, neighbors: int = 5, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
    """Return the nearest bins of `[Q, 2]` for each place of `[B, 2, h, w]`, nearest first, and how much of each it is.

    int64 and float `[B, h, w, neighbors]`; the shares are Gaussian in the distance and sum to 1 (Zhang et al., 2016,
    section 2.1: 5 neighbors, σ = 5).
    """
    nearest, distance = _nearest(ab, bins, neighbors)
    return nearest, torch.softmax(-(distance**2) / (2 * sigma**2), dim=3)


def rarity_weights(prior: Tensor, uniform: float = 0.5) -> Tensor:
    """Return a weight for each bin, larger for rare colors, 1 on average over the prior `[Q]`.

    The inverse of the prior mixed with so much of a uniform one (Zhang et al., 2016, equation 4: λ = 0.5).
    """
    weights = 1 / ((1 - uniform) * prior + uniform / len(prior))
    return weights / (prior * weights).sum()


def annealed_mean(logits: Tensor, bins: Tensor, temperature: float = 0.38) -> Tensor:
    """Return colors `[B, 2, h, w]` of logits `[B, Q, h, w]`: the mean of a sharpened distribution.

    (Zhang et al., 2016, equation 5: T = 0.38, between the mean, which is gray, and the mode, which is spotty.)
    """
    shares = torch.softmax(logits / temperature, dim=1)
    return torch.einsum("bqhw,qc->bchw", shares, bins.to(shares.dtype))


def _nearest(ab: Tensor, bins: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the nearest bins for each place of `[B, 2, h, w]` and their distances, `[B, h, w, count]`, some places at once."""
    places = ab.permute(0, 2, 3, 1)
    parts = places.flatten(0, 2).split(max(1, _AT_ONCE // len(bins)))
    found = [torch.cdist(part, bins.to(ab.dtype)).topk(count, dim=1, largest=False) for part in parts]
    distance, nearest = (torch.cat(values).unflatten(0, places.shape[:3]) for values in zip(*found, strict=True))
    return nearest, distance
