"""A small PointNet (Qi et al., 2017a)."""

from itertools import pairwise

from torch import Tensor, nn

from sslkit.points.encoders.base import PointEncoder, check_width


def pointnet_micro(in_channels: int = 3, size: int = 1024, width: int = 32) -> "PointNet":
    """PointNet without input transforms, widths 32-64-128-256 (`width=32`): the fastest for points."""
    check_width("pointnet_micro", in_channels, width, 4)
    return PointNet(in_channels, width)


class PointNet(PointEncoder):
    """Compute the same small network for every point, and the largest of its values over points (Qi et al., 2017a).

    Tokens are computed from a point's own values and the largest over all points, as in the paper's segmentation network.
    """

    provides = ("pooled", "tokens", "layers")

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__(8 * width, in_channels=in_channels)
        self.blocks = nn.ModuleList(
            point_layer(before, after) for before, after in pairwise([in_channels, width, 2 * width, 4 * width, 8 * width])
        )
        # Of a linear layer on a point's values beside those of the whole cloud: the second part is the same for all points.
        self.local, self.whole = nn.Linear(4 * width, 8 * width), nn.Linear(8 * width, 8 * width, bias=False)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of each block."""
        blocks = [list(block.parameters()) for block in self.blocks]
        return [*blocks[:-1], [*blocks[-1], *self.local.parameters(), *self.whole.parameters()]]

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each block computes of each point, `[B, N, w]`."""
        outputs: list[Tensor] = []
        for block in self.blocks:
            sample = block(sample)
            outputs.append(sample)
        return outputs

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return self.pool(self.layers(sample)[-1])

    def pool(self, tokens: Tensor) -> Tensor:
        """Return the largest values over points."""
        return tokens.amax(dim=1)

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return features of points, `[B, N, width]`."""
        layers = self.layers(sample)
        features: Tensor = self.local(layers[-2]) + self.whole(self.pool(layers[-1]))[:, None]
        return features


def point_layer(before: int, after: int) -> nn.Sequential:
    """Return a layer that is applied to every point.

    LayerNorm where the papers have BatchNorm: a cloud's features do not depend on the other clouds of a batch.
    """
    return nn.Sequential(nn.Linear(before, after), nn.LayerNorm(after), nn.ReLU())
