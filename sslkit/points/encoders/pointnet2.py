"""A small PointNet++ (Qi et al., 2017b)."""

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.points.encoders.base import PointEncoder, check_width
from sslkit.points.encoders.pointnet import point_layer
from sslkit.points.neighborhoods import farthest_points, interpolate, nearest_points, take

_FEWER = 4  # in each of two stages, a fourth of the points


def pointnet2_micro(in_channels: int = 3, size: int = 1024, width: int = 32, neighbors: int = 16) -> "PointNet2":
    """PointNet++ with neighborhoods of 16 points in two stages, widths 64-128-256 (`width=32`): sees local shape."""
    check_width("pointnet2_micro", in_channels, width, 4)
    fewest = _FEWER**2 * neighbors
    if not 2 <= neighbors <= 64 or size < neighbors * _FEWER:
        raise SslkitError(
            f"neighbors should be 2 to 64, and at most {size // _FEWER} of {size} points (got {neighbors})",
            f"use fewer, or {fewest} points",
            flag="encoder_option",
        )
    return PointNet2(in_channels, width, neighbors)


class PointNet2(PointEncoder):
    """Describe neighborhoods of points by a PointNet, then neighborhoods of these, then the whole (Qi et al., 2017b).

    Neighborhoods are the nearest points of a fourth of the points, spread by farthest point sampling. Tokens are those of
    single points: the values of the stages are interpolated back to them, as in the paper's segmentation network.
    """

    provides = ("pooled", "tokens", "layers")

    def __init__(self, in_channels: int, width: int, neighbors: int) -> None:
        super().__init__(8 * width, in_channels=in_channels)
        self.neighbors = neighbors
        self.local = nn.Sequential(point_layer(in_channels, width), point_layer(width, 2 * width))
        self.regional = nn.Sequential(point_layer(3 + 2 * width, 2 * width), point_layer(2 * width, 4 * width))
        self.whole = nn.Sequential(point_layer(3 + 4 * width, 8 * width), point_layer(8 * width, 8 * width))
        self.back_to_local = point_layer(2 * width + 4 * width + 8 * width, 8 * width)
        self.back_to_points = nn.Linear(in_channels + 8 * width, 8 * width)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each stage; those of tokens belong to the last."""
        parts: list[list[nn.Module]] = [[self.local], [self.regional], [self.whole, self.back_to_local, self.back_to_points]]
        return [[parameter for module in modules for parameter in module.parameters()] for modules in parts]

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each stage computes of its neighborhoods, `[B, n, w]`."""
        return [values for _, values in self._stages(sample)]

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return self.pool(self._stages(sample)[-1][1])

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the largest values."""
        return tokens.amax(dim=1)

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return features of points, `[B, N, width]`."""
        (local_centers, local), (centers, regional), (_, whole) = self._stages(sample)
        everything = self.pool(whole)[:, None].expand(-1, regional.shape[1], -1)
        upper = interpolate(local_centers, centers, torch.cat([regional, everything], dim=2))
        upper = self.back_to_local(torch.cat([local, upper], dim=2))
        points = interpolate(sample[..., :3], local_centers, upper)
        features: Tensor = self.back_to_points(torch.cat([sample.to(points.dtype), points], dim=2))
        return features

    def _stages(self, sample: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the centers `[B, n, 3]` and values `[B, n, w]` of each stage; the last has those of the one before."""
        coordinates, values = sample[..., :3], sample[..., 3:]
        result = []
        for network in (self.local, self.regional):
            count = max(1, coordinates.shape[1] // _FEWER)
            centers = take(coordinates, farthest_points(coordinates, count))
            rows = nearest_points(centers, coordinates, min(self.neighbors, coordinates.shape[1]))
            relative = take(coordinates, rows) - centers[:, :, None]
            values = network(torch.cat([relative, take(values, rows).to(relative.dtype)], dim=3)).amax(dim=2)
            coordinates = centers
            result.append((centers, values))
        return [*result, (coordinates, self.whole(torch.cat([coordinates, values.to(coordinates.dtype)], dim=2)))]
