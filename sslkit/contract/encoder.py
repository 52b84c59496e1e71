"""What every encoder offers, whatever its modality."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class Encoder(nn.Module):
    """Turn samples of one modality into features `[B, width]`; images are floats `[B, C, H, W]` in [0, 1].

    `offers` names what else it has: `tokens(x, keep=None, mask=None, fill=None) -> [B, prefix + N, width]`,
    `feature_map(x) -> [B, width, h, w]`, `layers(x) -> list[Tensor]`. `sample_dims` tells one sample from several views;
    `class_token` tells whether the first token stands for the whole sample; `sample_rate` is what an encoder of sound hears.
    """

    modality: ClassVar[str] = "image"
    offers: tuple[str, ...] = ("pooled",)
    sample_dims: int = 3
    class_token: bool = False
    sample_rate: int = 16000  # in Hz, of sound
    recipe: dict[str, Any]

    def __init__(self, width: int, in_channels: int) -> None:
        super().__init__()
        self.width, self.in_channels = width, in_channels

    @property
    def device(self) -> torch.device:
        """Return where its weights lie."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @property
    def prefix(self) -> int:
        """Return how many tokens, class token and registers, stand before the others."""
        return 0

    def nearest_valid_size(self, side: int) -> int:
        """Return the size nearest above `side` that images may have for this encoder: whole patches, where it has some."""
        return side

    def checkpoint_activations(self) -> bool:
        """Compute what is inside a block again for its gradient, in place of keeping it; returns whether it can do that."""
        return False

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters in the order of depth, the input's first: stem and blocks, where it knows them."""
        return [list(self.parameters())]

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        raise TypeError(f"{type(self).__name__} does not define forward()")

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return `[B, prefix + N, width]`, where `offers` says so."""
        raise TypeError(f"{type(self).__name__} has no tokens")

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature map, `[B, width, h, w]`, where `offers` says so."""
        raise TypeError(f"{type(self).__name__} has no feature map")

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each stage computes, where `offers` says so."""
        raise TypeError(f"{type(self).__name__} has no layers")

    def pool(self, tokens: Tensor) -> Tensor:
        """Return `[B, width]` of tokens `[B, prefix + N, width]`: the mean without the prefix, unless overridden."""
        return tokens[:, self.prefix :].mean(dim=1)


def over_views(read: Callable[[Tensor], dict[str, Tensor]], sample_dims: int, sample: Tensor) -> dict[str, Tensor]:
    """Return what `read` says of samples, `[B, width]` by name; of several views of each, `[B, V, ...]`, the mean."""
    if sample.dim() == sample_dims + 1:
        return read(sample)
    found = [read(view) for view in sample.unbind(1)]  # one after the other: all would be many at once
    return {name: torch.stack([one[name] for one in found]).mean(dim=0) for name in found[0]}
