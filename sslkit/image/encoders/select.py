"""An encoder of selected channels of an image: lightness, color, gray, edges, or a range of its channels."""

import re

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.image.transforms.color import grayscale, rgb_to_lab
from sslkit.image.transforms.edges import sobel

_OF_RGB = {"l": 1, "ab": 2, "gray": 1, "sobel": 2}  # number of channels


def count_selected(selection: str, channels: int) -> int:
    """Return how many channels a selection of images with so many channels has; raises SslkitError if there is no such one."""
    if selection in _OF_RGB:
        if channels != 3:
            raise SslkitError(f"images with {channels} channels have no {selection}, which is computed from RGB")
        return _OF_RGB[selection]
    places = find_channels(selection)
    if places is None or not places.start < places.stop <= channels:
        raise SslkitError(f"images with {channels} channels have no {selection!r}: use l, ab, gray, sobel, or channels from 0")
    return len(places)


def find_channels(selection: str) -> range | None:
    """Return the channels that `3` or `0-2` names, counted from 0; None for any other text."""
    match = re.fullmatch(r"(\d{1,4})(?:-(\d{1,4}))?", selection, re.ASCII)
    return None if match is None else range(int(match[1]), int(match[2] or match[1]) + 1)


class Select(Encoder):
    """Encoder of the lightness (`l`), color (`ab`), gray or edges (`sobel`) of RGB images, or of some channels (`0-2`).

    It converts its input itself.
    """

    def __init__(self, select: str, channels: int, encoder: Encoder) -> None:
        super().__init__(encoder.width, in_channels=channels)
        self.select, self.encoder, self.range = select, encoder, find_channels(select)
        # No tokens: their users also need the grid and patch, which only the inner encoder has.
        self.provides = tuple(capability for capability in encoder.provides if capability not in ("tokens", "blocks"))
        self.class_token = encoder.class_token

    @property
    def prefix(self) -> int:
        """Return the inner encoder's prefix."""
        return self.encoder.prefix

    def checkpoint_activations(self) -> bool:
        """Delegate to the inner encoder."""
        return self.encoder.checkpoint_activations()

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the inner encoder's stages."""
        return self.encoder.stages()

    def pool(self, tokens: Tensor) -> Tensor:
        """Return `[B, width]` of tokens, as the inner encoder pools."""
        return self.encoder.pool(tokens)

    def nearest_valid_size(self, side: int) -> int:
        """Return the nearest valid size of the inner encoder."""
        return self.encoder.nearest_valid_size(side)

    def channels(self, image: Tensor) -> Tensor:
        """Return the inner encoder's input for `[B, C, H, W]`, in about [0, 1]."""
        if self.range is not None:
            return image[:, self.range.start : self.range.stop]
        with torch.autocast(image.device.type, enabled=False):  # in half precision, lightness would leak into the colors
            if self.select == "gray":
                return grayscale(image, probability=1.0)[:, :1]
            if self.select == "sobel":
                return sobel(image) + 0.5
            lab = rgb_to_lab(image)
            return lab[:, :1] / 100 if self.select == "l" else lab[:, 1:] / 220 + 0.5

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the inner encoder's layers."""
        return self.encoder.layers(self.channels(image))

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the inner encoder's last feature map, `[B, width, h, w]`."""
        return self.encoder.feature_map(self.channels(image))

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        features: Tensor = self.encoder(self.channels(image))
        return features
