"""Strided 1×1 convolutions of few channels, whose gradient torch gets wrong on CPUs with AVX-512."""

from typing import TypeGuard

import torch.nn.functional as F
from torch import Tensor, nn

_NARROW = 16  # input channels that fill a vector register


class Subsampling1x1(nn.Conv2d):
    """A strided 1×1 convolution, computed as one without stride of every `step`-th pixel."""

    def __init__(self, replaced: nn.Conv2d) -> None:
        super().__init__(replaced.in_channels, replaced.out_channels, 1, groups=replaced.groups, bias=replaced.bias is not None)
        self.step, self.weight, self.bias = replaced.stride, replaced.weight, replaced.bias

    def forward(self, input: Tensor) -> Tensor:
        """Return `[B, outer, h / step, w / step]`."""
        return super().forward(F.avg_pool2d(input, 1, self.step))  # which traces with dynamic sizes as a convolution does


def replace_narrow_convolutions(network: nn.Module) -> None:
    """Replace strided 1×1 convolutions of fewer than 16 channels in place; names and weights stay.

    torch 2.14 (oneDNN) corrupts memory in their weight gradient if the images are in channels_last.
    """
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if _is_narrow(child):
                setattr(parent, name, Subsampling1x1(child))


def _is_narrow(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    if type(module) is not nn.Conv2d or module.kernel_size != (1, 1) or module.padding != (0, 0):
        return False
    return max(module.stride) > 1 and module.in_channels // module.groups < _NARROW
