"""What features of point clouds have to beat: how many points lie where."""

import torch
from torch import Tensor

from sslkit.points.encoders.base import PointEncoder


class OccupancyGrid(PointEncoder):
    """Count the points in each cell of a grid: what features of points have to beat."""

    place_values: Tensor

    def __init__(self, in_channels: int, side: int) -> None:
        super().__init__(side**3, in_channels=in_channels)
        self.side = side
        self.recipe = {"name": "occupancy grid", "side": side}
        self.register_buffer("place_values", torch.tensor([side * side, side, 1]), persistent=False)

    def forward(self, sample: Tensor) -> Tensor:
        """Return the share of points in each cell, `[B, side³]`."""
        cells = ((sample[..., :3] + 1) / 2 * self.side).long().clamp(0, self.side - 1)
        places = (cells * self.place_values).sum(dim=2)
        counts = torch.zeros(len(sample), self.side**3, device=sample.device)
        return counts.scatter_add_(1, places, torch.ones_like(places, dtype=counts.dtype)) / sample.shape[1]
