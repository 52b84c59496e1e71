"""A small convolutional network on voxels."""

from itertools import pairwise

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.points.encoders.base import PointEncoder, check_width

_GROUPS = 8


def voxel_micro(in_channels: int = 3, size: int = 1024, width: int = 16, side: int = 24) -> "VoxelNet":
    """Three-dimensional convolutions on which of 24³ cells have a point, widths 16-32-64-128 (`width=16`)."""
    check_width("voxel_micro", in_channels, width, _GROUPS)
    if not 8 <= side <= 128:
        raise SslkitError(f"side should be 8 to 128 cells (got {side})", flag="encoder_option")
    return VoxelNet(in_channels, width, side)


class VoxelNet(PointEncoder):
    """Convolve a grid of cells over [-1, 1]³, which are 1 where there is a point; values beside coordinates are not used."""

    provides = ("pooled", "layers")

    def __init__(self, in_channels: int, width: int, side: int) -> None:
        super().__init__(8 * width, in_channels=in_channels)
        self.side = side
        widths = [1, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv3d(before, after, 3, stride, 1, bias=False), nn.GroupNorm(_GROUPS, after), nn.ReLU())
            for (before, after), stride in zip(pairwise(widths), (1, 2, 2, 1), strict=True)
        )

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each block."""
        return [list(block.parameters()) for block in self.blocks]

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each block computes, `[B, cells, w]`."""
        x, outputs = occupied(sample, self.side)[:, None], []
        for block in self.blocks:
            x = block(x)
            outputs.append(x.flatten(2).transpose(1, 2))
        return outputs

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return self.pool(self.layers(sample)[-1])

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the largest values over cells."""
        return tokens.amax(dim=1)


def occupied(sample: Tensor, side: int) -> Tensor:
    """Return which cells have a point, floats `[B, side, side, side]` of 0 and 1; points outside count for the nearest cell."""
    grid = torch.zeros(sample.shape[0], side**3, device=sample.device)
    result: Tensor = grid.scatter(1, cell_numbers(sample, side), 1.0).unflatten(1, (side, side, side))
    return result


def cell_numbers(sample: Tensor, side: int) -> Tensor:
    """Return the number of each point's cell in a grid over [-1, 1]³, int64 `[B, N]` below `side`³, z fastest."""
    cells = ((sample[..., :3] + 1) / 2 * side).long().clamp(0, side - 1)
    return (cells[..., 0] * side + cells[..., 1]) * side + cells[..., 2]
