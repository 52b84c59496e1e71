"""Encoders side by side, and an encoder with layers on top."""

from itertools import chain, zip_longest

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.nn.heads import Norm, mlp


class Concat(Encoder):
    """Concatenate the features of several encoders of the same sample."""

    def __init__(self, parts: list[Encoder]) -> None:
        widths, channels = [part.width for part in parts], {part.in_channels for part in parts}
        if len(channels) > 1:
            raise SslkitError(f"encoders that stand side by side take images of {sorted(channels)} channels", "they must agree")
        super().__init__(sum(widths), channels.pop())
        self.parts = nn.ModuleList(parts)
        # Tokens would have to agree on the mask's filling, which is one vector per encoder.
        self.provides = tuple(
            capability
            for capability in ("pooled", "feature_map", "layers")
            if all(capability in part.provides for part in parts)
        )

        self.class_token = all(part.class_token for part in parts)

    @property
    def prefix(self) -> int:
        """Return the parts' prefix, which is the same where they have tokens."""
        return self.encoders[0].prefix

    def checkpoint_activations(self) -> bool:
        """Enable it in all parts."""
        return all(part.checkpoint_activations() for part in self.encoders)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the stages of all parts together, the last ones beside each other."""
        reversed_stages = [part.stages()[::-1] for part in self.encoders]
        return [list(chain(*level)) for level in zip_longest(*reversed_stages, fillvalue=[])][::-1]

    def pool(self, tokens: Tensor) -> Tensor:
        """Return `[B, width]` of tokens side by side, each part as its encoder pools."""
        pieces = tokens.split([part.width for part in self.encoders], dim=2)
        return torch.cat([part.pool(piece) for part, piece in zip(self.encoders, pieces, strict=True)], dim=1)

    def nearest_valid_size(self, side: int) -> int:
        """Return what fits the first part; the others are of its kind."""
        return self.encoders[0].nearest_valid_size(side)

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


class Projected(Encoder):
    """An encoder and the first layers of the projector on top of it: what SimCLRv2 fine-tunes (Chen et al., 2020b)."""

    def __init__(self, encoder: Encoder, widths: list[int], norm: Norm) -> None:
        super().__init__(widths[-1], encoder.in_channels)
        self.encoder = encoder
        self.layers_on_top = mlp([encoder.width, *widths, 1], norm)[:-1]  # all but the last, each with norm and ReLU

    @property
    def size_step(self) -> int:
        """Return the inner encoder's step."""
        return self.encoder.size_step

    def nearest_valid_size(self, side: int) -> int:
        """Return the nearest valid size of the inner encoder."""
        return self.encoder.nearest_valid_size(side)

    def checkpoint_activations(self) -> bool:
        """Delegate to the inner encoder."""
        return self.encoder.checkpoint_activations()

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the inner encoder's stages, the last one with the layers on top."""
        stages = self.encoder.stages()
        return [*stages[:-1], [*stages[-1], *self.layers_on_top.parameters()]]

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        features: Tensor = self.layers_on_top(self.encoder(image))
        return features
