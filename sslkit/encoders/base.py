"""What every encoder offers, whatever its architecture."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sslkit.errors import SslkitError

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


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

    def fitting(self, side: int) -> int:
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


class ImageEncoder(Encoder):
    """Be an encoder of images `[B, C, H, W]`, floats in [0, 1], that normalises its own input."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, width: int, in_channels: int = 3, normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    ) -> None:
        super().__init__(width, in_channels)
        if normalisation is None:
            normalisation = _IMAGENET if in_channels == 3 else ((0.5,) * in_channels, (0.25,) * in_channels)
        mean, std = normalisation
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def normalise(self, image: Tensor) -> Tensor:
        """Return the image minus mean, over standard deviation."""
        return (image - self.mean) / self.std


class PatchEncoder(ImageEncoder):
    """Be an encoder whose tokens are the patches of an image, row by row, after `prefix` others."""

    offers: tuple[str, ...] = ("pooled", "tokens", "feature_map", "layers")

    @property
    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        raise TypeError(f"{type(self).__name__} does not define patch")

    def fitting(self, side: int) -> int:
        """Return `side`, rounded up to whole patches."""
        return -(-side // self.patch) * self.patch

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Return rows and columns of patches; an image that patches do not divide is an SslkitError."""
        height, width = image.shape[-2:]
        if height % self.patch or width % self.patch:
            raise SslkitError(f"--size: {height} is not a multiple of the encoder's patch of {self.patch} pixels")
        return height // self.patch, width // self.patch


class FeatureMapEncoder(ImageEncoder):
    """Be an encoder whose features are the mean over a last feature map."""

    offers = ("pooled", "feature_map", "layers")

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature map, `[B, width, h, w]`."""
        return self.layers(image)[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return self.feature_map(image).mean(dim=(2, 3))


class Wrapped(ImageEncoder):
    """Be an encoder around any module that returns `[B, width]`."""

    def __init__(self, model: nn.Module, width: int, in_channels: int) -> None:
        super().__init__(width, in_channels)
        self.model = model

    def fitting(self, side: int) -> int:
        """Return the only size of a model that says it has one, such as torchvision's ViT; `side` for the others."""
        return int(getattr(self.model, "image_size", side))

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        features: Tensor = self.model(self.normalise(image))
        return features
