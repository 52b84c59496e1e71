"""The base class of encoders of any modality, and of libraries of published encoders."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError


class Encoder(nn.Module):
    """Turn samples of one modality into features `[B, width]`; images are floats `[B, C, H, W]` in [0, 1].

    `provides` names what else it has: `tokens(x, keep=None, mask=None, fill=None) -> [B, prefix + N, width]`,
    `feature_map(x) -> [B, width, h, w]`, `layers(x) -> list[Tensor]`. `sample_dims` tells one sample from several views;
    `class_token` tells whether the first token stands for the whole sample.
    """

    modality: ClassVar[str] = "image"
    provides: tuple[str, ...] = ("pooled",)
    sample_dims: int = 3
    class_token: bool = False
    recipe: dict[str, Any]

    def __init__(self, width: int, in_channels: int) -> None:
        super().__init__()
        self.width, self.in_channels = width, in_channels

    def describe(self) -> dict[str, Any]:
        """Return what a checkpoint records of this encoder besides its recipe, such as the normalization inside."""
        return {}

    def take_over(self, trained: "Encoder") -> None:
        """Take over from a trained encoder of the same recipe what is no weight, such as its tokenizer."""

    @property
    def device(self) -> torch.device:
        """Return where its weights lie."""
        return next(itertools.chain(self.parameters(), self.buffers())).device

    @property
    def prefix(self) -> int:
        """Return how many tokens, class token and registers, stand before the others."""
        return 0

    @property
    def size_step(self) -> int:
        """Return the step in which sample sizes may grow: the side of a patch, where the encoder has patches, else 1."""
        return 1

    def nearest_valid_size(self, side: int) -> int:
        """Return the size nearest above `side` that images may have for this encoder: whole patches, where it has some."""
        return side

    def checkpoint_activations(self) -> bool:
        """Compute what is inside a block again for its gradient, in place of keeping it; returns whether it can do that."""
        return False

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters in the order of depth, the input's first: stem and blocks, where it knows them."""
        return [list(self.parameters())]

    def sequence(self) -> list[nn.Module]:
        """Return modules, the input's first, each of which is all that deeper layers read; none if it shows none."""
        return []

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        raise TypeError(f"{type(self).__name__} does not define forward()")

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return `[B, prefix + N, width]`, if `provides` names it."""
        raise TypeError(f"{type(self).__name__} has no tokens")

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature map, `[B, width, h, w]`, if `provides` names it."""
        raise TypeError(f"{type(self).__name__} has no feature map")

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each stage computes, if `provides` names it."""
        raise TypeError(f"{type(self).__name__} has no layers")

    def vocabulary(self) -> tuple[list[str], Tensor] | None:
        """Return words and their vectors, `[V, width]`, of an encoder that keeps one for each word; of others None.

        Raises SslkitError if the words are not those of the vectors.
        """
        return None

    def without_padding(self, sample: Tensor) -> Tensor:
        """Return samples without padding that all of them have and no output depends on; as they are unless overridden."""
        return sample

    def pool(self, tokens: Tensor) -> Tensor:
        """Return `[B, width]` of tokens `[B, prefix + N, width]`: the mean without the prefix, unless overridden."""
        return tokens[:, self.prefix :].mean(dim=1)

    def pool_sample(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return `[B, width]` of the tokens of samples, of which some may be padding: as `pool`, unless overridden."""
        return self.pool(tokens)

    def last_token(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the last of the tokens that is no padding, `[B, width]`; raises SslkitError where tokens have no order."""
        raise SslkitError(f"encoders of {self.modality} data have no last token", "use average", flag="pool")

    def average(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the mean of the tokens of samples without the prefix, `[B, width]`."""
        return tokens[:, self.prefix :].mean(dim=1)


def over_views(read: Callable[[Tensor], dict[str, Tensor]], sample_dims: int, sample: Tensor) -> dict[str, Tensor]:
    """Return the features that `read` computes of samples, `[B, width]` by name; the mean over several views `[B, V, ...]`."""
    if sample.dim() == sample_dims + 1:
        return read(sample)
    outputs = [read(view) for view in sample.unbind(1)]  # one after the other: all would be many at once
    return {name: torch.stack([output[name] for output in outputs]).mean(dim=0) for name in outputs[0]}


class EncoderLibrary:
    """Build the published architectures of a library, named `LIBRARY:NAME`; an entry point of `sslkit.encoder_libraries`."""

    modality: ClassVar[str]

    def names(self) -> list[str]:
        """Return the names of all architectures."""
        raise TypeError(f"{type(self).__name__} does not define names()")

    def build(
        self, name: str, in_channels: int, size: int, stem: str = "standard", pretrained: bool = False, **options: Any
    ) -> Encoder:
        """Build an encoder without its classifier; raises SslkitError for a name the library does not have."""
        raise TypeError(f"{type(self).__name__} does not define build()")

    def scale_width(self, name: str, options: dict[str, Any], factor: float) -> dict[str, Any]:
        """Return the options that make an architecture `factor` times as wide; none if it has no such options."""
        return {}

    def wrap(self, module: nn.Module, in_channels: int, size: int) -> Encoder:
        """Return any module that maps samples to `[B, width]` as an encoder."""
        raise SslkitError(f"{type(module).__name__} is not an sslkit Encoder", "return one from the factory", flag="encoder")

    def version(self) -> str:
        """Return the library's name and version."""
        raise TypeError(f"{type(self).__name__} does not define version()")
