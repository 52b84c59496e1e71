"""A ResNet that trains on a laptop CPU."""

from collections.abc import Callable
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.image.encoders.base import FeatureMapEncoder
from sslkit.image.encoders.narrow import replace_narrow_convolutions


def resnet_micro(in_channels: int = 3, size: int = 32, width: int = 16) -> FeatureMapEncoder:
    """ResNet of four basic blocks, widths 16-32-64-128 (`width=16`), 3×3 stem: trains on a laptop CPU."""
    if width < 8 or width % 8:
        # Fewer channels than fit a vector register are no faster.
        raise SslkitError(f"width of resnet_micro must be a multiple of 8 (got {width})", flag="encoder_option")
    return ResNetMicro(in_channels, width)


class ResNetMicro(FeatureMapEncoder):
    """Four basic blocks (He et al., 2016, figure 5 left) with strides 1-2-2-2 after a 3×3 stem; takes any image size.

    `normalization`, `norm` and `stride` (of the first block) adapt it to spectrograms.
    """

    def __init__(
        self,
        in_channels: int = 3,
        width: int = 16,
        stride: int = 1,
        norm: Callable[[int], nn.Module] = nn.BatchNorm2d,
        normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        super().__init__(8 * width, in_channels, normalization)
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.stem_norm = norm(width)
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.blocks = nn.ModuleList(
            BasicBlock(inner, outer, stride if i == 0 else 2, norm) for i, (inner, outer) in enumerate(pairwise(widths))
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        replace_narrow_convolutions(self)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the stem, then those of each block."""
        stem = [*self.stem.parameters(), *self.stem_norm.parameters()]
        return [stem, *(list(block.parameters()) for block in self.blocks)]

    def sequence(self) -> list[nn.Module]:
        """Return the four blocks."""
        return list(self.blocks)

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the outputs of the four blocks, `[B, w, h, w]` each."""
        # channels_last is the fastest format for convolutions, on CPUs as well as on tensor cores.
        x = self.normalize(image).contiguous(memory_format=torch.channels_last)
        x = F.relu(self.stem_norm(self.stem(x)), inplace=True)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps


class BasicBlock(nn.Module):
    """Residual block of two 3×3 convolutions, with a 1×1 convolution on the shortcut where the shape changes."""

    def __init__(self, inner: int, outer: int, stride: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inner, outer, 3, stride, padding=1, bias=False)
        self.norm1 = norm(outer)
        self.conv2 = nn.Conv2d(outer, outer, 3, padding=1, bias=False)
        self.norm2 = norm(outer)
        self.drop_path: nn.Module = nn.Identity()  # fine-tuning may replace it with stochastic depth
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inner != outer:
            self.shortcut = nn.Sequential(nn.Conv2d(inner, outer, 1, stride, bias=False), norm(outer))

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, outer, h / stride, w / stride]`."""
        out = F.relu(self.norm1(self.conv1(x)), inplace=True)
        out = self.norm2(self.conv2(out))
        return F.relu(self.drop_path(out) + self.shortcut(x), inplace=True)
