"""A small transformer on patches of points (Point-BERT, Yu et al., 2022; Point-MAE, Pang et al., 2022)."""

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.nn.transformer import Block
from sslkit.points.encoders.base import PointEncoder, check_width
from sslkit.points.neighborhoods import farthest_points, nearest_points, take


def point_patches_micro(
    in_channels: int = 3, size: int = 1024, width: int = 96, depth: int = 4, patches: int = 64, patch_points: int = 16
) -> "PointPatches":
    """Transformer on 64 patches of 16 points, width 96, depth 4: encodes the visible patches of masked clouds."""
    check_width("point_patches_micro", in_channels, width, 32)
    if not 1 <= depth <= 64:
        raise SslkitError(f"depth should be 1 to 64 (got {depth})", flag="encoder_option")
    for name, count in (("patches", patches), ("patch_points", patch_points)):
        if not 2 <= count <= size:
            raise SslkitError(f"{name} should be 2 to {size}, the number of points (got {count})", flag="encoder_option")
    return PointPatches(in_channels, width, depth, patches, patch_points)


class PointPatches(PointEncoder):
    """Encode patches, the nearest points of centers that are spread over a cloud, by a transformer.

    A patch is described by a PointNet of coordinates relative to its center, and its place by a network of the center.
    """

    provides = ("pooled", "tokens", "layers", "patches")

    def __init__(self, in_channels: int, width: int, depth: int, patches: int, patch_points: int) -> None:
        super().__init__(width, in_channels=in_channels)
        self.patches, self.patch_points = patches, patch_points
        self.embed = PatchEmbedding(in_channels, width)
        self.positions = position_network(width)
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embedding and of each block."""
        blocks = [list(block.parameters()) for block in self.blocks]
        return [[*self.embed.parameters(), *self.positions.parameters()], *blocks[:-1], [*blocks[-1], *self.norm.parameters()]]

    def cut(self, sample: Tensor) -> tuple[Tensor, Tensor]:
        """Return the centers `[B, G, 3]` and the patches `[B, G, P, 3 + F]`, coordinates relative to the center."""
        coordinates = sample[..., :3]
        centers = take(coordinates, farthest_points(coordinates, min(self.patches, sample.shape[1])))
        patches = take(sample, nearest_points(centers, coordinates, min(self.patch_points, sample.shape[1])))
        relative = patches[..., :3] - centers[:, :, None]
        return centers, torch.cat([relative, patches[..., 3:]], dim=3)

    def encode(self, centers: Tensor, patches: Tensor) -> Tensor:
        """Return features of patches, `[B, G, width]`, all that they know of each other."""
        features: Tensor = self.norm(self._blocks(centers, patches)[-1])
        return features

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each block computes, `[B, G, width]`; the last after its LayerNorm."""
        outputs = self._blocks(*self.cut(sample))
        return [*outputs[:-1], self.norm(outputs[-1])]

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return features of patches, `[B, G, width]`; with `keep` `[B, K]`, of these alone, which see no other."""
        centers, patches = self.cut(sample)
        if keep is not None:
            centers, patches = take(centers, keep), take(patches.flatten(2), keep).unflatten(2, patches.shape[2:])
        return self.encode(centers, patches)

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the largest values over patches."""
        return tokens.amax(dim=1)

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return self.pool(self.tokens(sample))

    def _blocks(self, centers: Tensor, patches: Tensor) -> list[Tensor]:
        x, positions, outputs = self.embed(patches), self.positions(centers), []
        for block in self.blocks:  # the position is added before every block, as by the authors
            x = block(x + positions)
            outputs.append(x)
        return outputs


class PatchEmbedding(nn.Module):
    """Describe each patch `[B, G, P, 3 + F]` by a PointNet of two stages, `[B, G, width]` (Yu et al., 2022, section 3.1)."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(in_channels, width), nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))
        # Of a linear layer on a point's values beside those of the whole patch.
        self.point, self.whole = nn.Linear(width, width), nn.Linear(width, width, bias=False)
        self.second = nn.Sequential(nn.LayerNorm(width), nn.ReLU(), nn.Linear(width, width))

    def forward(self, patches: Tensor) -> Tensor:
        """Return `[B, G, width]`."""
        points = self.first(patches)
        result: Tensor = self.second(self.point(points) + self.whole(points.amax(dim=2, keepdim=True))).amax(dim=2)
        return result


def position_network(width: int) -> nn.Sequential:
    """Return the network that describes a center by `width` values."""
    return nn.Sequential(nn.Linear(3, width), nn.GELU(), nn.Linear(width, width))
