"""Pictures of point clouds."""

import math

import torch
from torch import Tensor

from sslkit.pictures import heat_map

_AZIMUTH, _ELEVATION = math.radians(30), math.radians(20)  # from which a cloud is looked at
_DOT = 1  # pixels to each side of a point


def draw_points(points: Tensor, values: Tensor | None = None, size: int = 96) -> Tensor:
    """Draw clouds `[N, P, 3 + F]` in the unit ball, `[N, 3, size, size]`; colors are `values` `[N, P]`, or the height.

    Nearer points hide others. NaN among the values: such points are gray.
    """
    x, y, z = points[..., :3].float().unbind(2)
    right = x * math.cos(_AZIMUTH) - y * math.sin(_AZIMUTH)
    away = x * math.sin(_AZIMUTH) + y * math.cos(_AZIMUTH)
    up = z * math.cos(_ELEVATION) - away * math.sin(_ELEVATION)
    depth = away * math.cos(_ELEVATION) + z * math.sin(_ELEVATION)
    colors = heat_map((z if values is None else values.nan_to_num(0))[:, None] * 0.8)[..., 0, :].movedim(1, 2)  # [N, P, 3]
    if values is not None:
        colors = torch.where(values.isnan()[..., None], colors.new_tensor(0.75), colors)
    column = ((right + 1) / 2 * (size - 1)).round().long()
    row = ((1 - up) / 2 * (size - 1)).round().long()
    order = depth.argsort(dim=1, descending=True)  # from far to near: later ones cover the rest
    picture = points.new_ones(len(points), 3, size, size, dtype=torch.float32)
    for number in range(len(points)):
        for dx in range(-_DOT, _DOT + 1):
            for dy in range(-_DOT, _DOT + 1):
                at = order[number]
                across, down = (column[number, at] + dx).clamp(0, size - 1), (row[number, at] + dy).clamp(0, size - 1)
                picture[number].index_put_((torch.arange(3)[:, None], down[None], across[None]), colors[number, at].T)
    return picture
