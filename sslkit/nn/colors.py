"""Colours as classes."""

from functools import cache

import torch
from torch import Tensor

from sslkit.transforms.color import rgb_to_lab

_GRID = 10  # side of a cell in a and b (Zhang et al., 2016, section 2)


@cache
def ab_bins() -> Tensor:
    """Return the centres `[Q, 2]` of the cells in the ab plane, 10 wide, that some sRGB colour falls into: 261.

    Computed from a cube of 64³ colours, which meets every cell that all 256³ colours meet. (The authors' file has 313: it
    counts more than the colours that there are.)
    """
    steps = torch.linspace(0, 1, 64)
    colors = torch.cartesian_prod(steps, steps, steps).T.reshape(1, 3, -1, 1)
    cells = (rgb_to_lab(colors)[0, 1:, :, 0] / _GRID).round()
    there: Tensor = torch.unique(cells, dim=1)
    return there.T.contiguous() * _GRID


def nearest_bin(ab: Tensor, bins: Tensor) -> Tensor:
    """Return the nearest of the bins `[Q, 2]` for each place of `[B, 2, h, w]`, int64 `[B, h, w]`."""
    places = ab.permute(0, 2, 3, 1)
    return torch.cdist(places.flatten(0, 2), bins.to(ab.dtype)).argmin(dim=1).view(places.shape[:3])
