"""Base classes of image encoders: input normalization, patches, feature maps."""

from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.image.encoders.narrow import replace_narrow_convolutions

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class ImageEncoder(Encoder):
    """Encoder of images `[B, C, H, W]`, floats in [0, 1], that normalizes its input itself."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, width: int, in_channels: int = 3, normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    ) -> None:
        super().__init__(width, in_channels)
        if normalization is None:
            normalization = _IMAGENET if in_channels == 3 else ((0.5,) * in_channels, (0.25,) * in_channels)
        mean, std = normalization
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))

    def describe(self) -> dict[str, Any]:
        """Return mean and standard deviation, by channel."""
        return {"mean": self.mean.flatten().tolist(), "std": self.std.flatten().tolist()}

    def normalize(self, image: Tensor) -> Tensor:
        """Subtract the mean and divide by the standard deviation."""
        return (image - self.mean) / self.std


class PatchEncoder(ImageEncoder):
    """Encoder whose tokens are `prefix` extra tokens, then the patches of an image in row-major order."""

    provides: tuple[str, ...] = ("pooled", "tokens", "feature_map", "layers")

    @property
    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        raise TypeError(f"{type(self).__name__} does not define patch")

    @property
    def size_step(self) -> int:
        """Return the side of a patch: image sides must be multiples of it."""
        return self.patch

    def nearest_valid_size(self, side: int) -> int:
        """Return `side`, rounded up to whole patches."""
        return -(-side // self.patch) * self.patch

    def grid(self, image: Tensor) -> tuple[int, int]:
        """Return the rows and columns of patches; raise SslkitError if patches do not divide the image."""
        height, width = image.shape[-2:]
        if height % self.patch or width % self.patch:
            raise SslkitError(f"{height} is not a multiple of the encoder's patch of {self.patch} px", flag="size")
        return height // self.patch, width // self.patch


class FeatureMapEncoder(ImageEncoder):
    """Encoder whose features are the spatial mean of its last feature map."""

    provides = ("pooled", "feature_map", "layers")

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature map, `[B, width, h, w]`."""
        return self.layers(image)[-1]

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return self.feature_map(image).mean(dim=(2, 3))


class WrappedEncoder(ImageEncoder):
    """Encoder around any module that returns `[B, width]`."""

    def __init__(self, model: nn.Module, width: int, in_channels: int) -> None:
        super().__init__(width, in_channels)
        replace_narrow_convolutions(model)
        self.model = model

    def nearest_valid_size(self, side: int) -> int:
        """Return the only size of a model with a fixed `image_size`, such as torchvision's ViT, else `side`."""
        return int(getattr(self.model, "image_size", side))

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        features: Tensor = self.model(self.normalize(image))
        return features
