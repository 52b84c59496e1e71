"""What image features have to beat: the pixels themselves."""

import torch.nn.functional as F
from torch import Tensor

from sslkit.image.encoders.base import ImageEncoder


class RawPixels(ImageEncoder):
    """Return the image itself, shrunk to at most `side` pixels: what features have to beat."""

    def __init__(self, in_channels: int, size: int, side: int) -> None:
        side = min(size, side)
        super().__init__(in_channels * side * side, in_channels)
        self.side = side
        self.recipe = {"name": "normalized pixels", "in_channels": in_channels, "size": side}

    def forward(self, image: Tensor) -> Tensor:
        """Return `[B, C * side * side]`, normalized: without a mean to take off, all images would be alike to a cosine."""
        if image.shape[-1] > self.side:
            image = F.interpolate(image, size=(self.side, self.side), mode="bilinear", antialias=True)
        return self.normalize(image).flatten(1)
