"""Encoders made of encoders: one that sees some channels of the image, and several side by side."""

from itertools import chain, zip_longest

import torch
from torch import Tensor, nn

from sslkit.encoders.base import Encoder
from sslkit.errors import SslkitError
from sslkit.transforms.color import grayscale, rgb_to_lab
from sslkit.transforms.edges import sobel

CHANNELS = {"l": 1, "ab": 2, "gray": 1, "sobel": 2}  # what may be selected, and how many channels that has


class Select(Encoder):
    """Show an encoder only lightness (`l`), colour (`ab`), gray or edges (`sobel`) of RGB images; the conversion is inside."""

    def __init__(self, select: str, encoder: Encoder) -> None:
        super().__init__(encoder.width, in_channels=3)
        self.select, self.encoder = select, encoder
        # Tokens stay inside: who reads them also asks for the grid, which is the inner encoder's.
        self.offers = tuple(what for what in encoder.offers if what != "tokens")
        self.class_token = encoder.class_token

    @property
    def prefix(self) -> int:
        """Return the inner encoder's prefix."""
        return self.encoder.prefix

    def checkpoint_activations(self) -> bool:
        """Let the inner encoder do it."""
        return self.encoder.checkpoint_activations()

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the inner encoder's stages."""
        return self.encoder.stages()

    def pool(self, tokens: Tensor) -> Tensor:
        """Return `[B, width]` of tokens, as the inner encoder pools."""
        return self.encoder.pool(tokens)

    def fitting(self, side: int) -> int:
        """Return what fits the inner encoder."""
        return self.encoder.fitting(side)

    def channels(self, image: Tensor) -> Tensor:
        """Return what the encoder inside sees of `[B, 3, H, W]`, in about [0, 1]: `[B, 1, H, W]`, or 2 channels for `ab`."""
        with torch.autocast(image.device.type, enabled=False):  # half precision would leave lightness in the colours
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


class Concat(Encoder):
    """Put the features of several encoders of the same image side by side."""

    def __init__(self, parts: list[Encoder]) -> None:
        widths, channels = [part.width for part in parts], {part.in_channels for part in parts}
        if len(channels) > 1:
            raise SslkitError(f"encoders that stand side by side take images of {sorted(channels)} channels", "they must agree")
        super().__init__(sum(widths), channels.pop())
        self.parts = nn.ModuleList(parts)
        # Tokens would have to agree on the mask's filling, which is one vector per encoder.
        self.offers = tuple(what for what in ("pooled", "feature_map", "layers") if all(what in part.offers for part in parts))

        self.class_token = all(part.class_token for part in parts)

    @property
    def prefix(self) -> int:
        """Return the parts' prefix, which is the same where they have tokens."""
        return self.encoders[0].prefix

    def checkpoint_activations(self) -> bool:
        """Let all parts do it."""
        return all(part.checkpoint_activations() for part in self.encoders)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the stages of all parts together, the last ones beside each other."""
        found = [part.stages()[::-1] for part in self.encoders]
        return [list(chain(*level)) for level in zip_longest(*found, fillvalue=[])][::-1]

    def pool(self, tokens: Tensor) -> Tensor:
        """Return `[B, width]` of tokens side by side, each part as its encoder pools."""
        pieces = tokens.split([part.width for part in self.encoders], dim=2)
        return torch.cat([part.pool(piece) for part, piece in zip(self.encoders, pieces, strict=True)], dim=1)

    def fitting(self, side: int) -> int:
        """Return what fits the first part; the others are of its kind."""
        return self.encoders[0].fitting(side)

    @property
    def encoders(self) -> list[Encoder]:
        """Return the encoders that stand side by side."""
        return [part for part in self.parts if isinstance(part, Encoder)]

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the layers of all parts, side by side."""
        dims = {4: 1, 3: 2}  # maps have their channels second, tokens last
        stages = zip(*(part.layers(image) for part in self.encoders), strict=True)
        return [torch.cat(stage, dim=dims[stage[0].dim()]) for stage in stages]

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature maps side by side, `[B, width, h, w]`."""
        return torch.cat([part.feature_map(image) for part in self.encoders], dim=1)

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return torch.cat([part(image) for part in self.encoders], dim=1)
