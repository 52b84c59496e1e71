"""What features of point clouds have to beat: how many points lie where."""

import torch
from torch import Tensor

from sslkit.points.encoders.base import PointEncoder
from sslkit.points.encoders.voxels import cell_numbers


class OccupancyGrid(PointEncoder):
    """Count the points in each cell of a grid: what features of points have to beat."""

    empty: Tensor

    def __init__(self, in_channels: int, side: int) -> None:
        super().__init__(side**3, in_channels=in_channels)
        self.side = side
        self.recipe = {"name": "occupancy grid", "side": side}
        self.register_buffer("empty", torch.zeros(1, side**3), persistent=False)

    def forward(self, sample: Tensor) -> Tensor:
        """Return the share of points in each cell, `[B, side³]`."""
        cells = cell_numbers(sample, self.side)
        counts = self.empty.expand(len(sample), -1)
        return counts.scatter_add(1, cells, torch.ones_like(cells, dtype=counts.dtype)) / sample.shape[1]
