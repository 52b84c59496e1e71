"""Decoders on top of an encoder during pretraining: of patches, feature maps and latent codes."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.options import TaskOptions
from sslkit.contract.task import DataInfo
from sslkit.nn.heads import Norm
from sslkit.nn.norms import in_eval_mode
from sslkit.nn.transformer import attention_kernel

Layers = Annotated[int, Field(ge=1, le=64)]


Width = Annotated[int, Field(ge=32, multiple_of=32)]


class PatchDecoder(nn.Module):
    """Small transformer with an output for every patch, visible or masked (He et al., 2022, section 3).

    If the encoder processes the visible patches only (`fills`), a learned mask token stands in for each of the others.
    Positions are fixed sines and cosines.
    """

    positions: Tensor

    def __init__(
        self, encoder_width: int, width: int, depth: int, grid: tuple[int, ...], output: int, fills: bool = True
    ) -> None:
        from timm.models.vision_transformer import Block  # not at the top: timm takes seconds to import

        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        if fills:
            self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.register_buffer("positions", sine_positions(grid, width), persistent=False)
        self.blocks = nn.Sequential(*(Block(width, max(1, width // 32), qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.output = nn.Linear(width, output)

    def forward(self, tokens: Tensor, prefix: int, keep: Tensor | None = None) -> Tensor:
        """Return `[B, N, output]` from tokens `[B, prefix + N, encoder width]`, or those of patches `keep` `[B, K]` only."""
        x = self.embed(tokens)
        patches = x[:, prefix:]
        if keep is not None:
            # Mask tokens everywhere, replaced by the encoder's tokens at the visible patches.
            mask_tokens = self.mask_token.to(x.dtype).expand(len(x), len(self.positions), -1)
            patches = mask_tokens.scatter(1, keep[:, :, None].expand(-1, -1, x.shape[2]), patches)
        patches = patches + self.positions  # float32 from here on: the residual stream keeps full precision
        x = torch.cat([x[:, :prefix], patches], dim=1)
        with attention_kernel(x):
            x = self.norm(self.blocks(x))
        output: Tensor = self.output(x[:, prefix:])
        return output


class PatchDecoderOptions(TaskOptions):
    """Options for the size of a patch decoder (He et al., 2022, table 1)."""

    decoder_depth: Layers | Literal["auto"] = Field(
        default="auto",
        description="Transformer blocks in the decoder; auto: 2 for encoders up to 192 wide, else 8 as in the paper.",
    )
    decoder_width: Width | Literal["auto"] = Field(
        default="auto", description="Width of the decoder; auto: 64 for encoders up to 192 wide, else 512 as in the paper."
    )

    def decoder_size(self, encoder_width: int) -> tuple[int, int]:
        """Return the depth and width of the decoder for an encoder of the given width."""
        small, depth, width = encoder_width <= 192, self.decoder_depth, self.decoder_width
        return (2 if small else 8) if depth == "auto" else depth, (64 if small else 512) if width == "auto" else width


class ConvDecoder(nn.Module):
    """Upsample a feature map `[B, width, h, w]` to `[B, output, side, side]` by repeated doubling and convolution."""

    def __init__(self, width: int, map_size: tuple[int, int], side: int, output: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.side = side
        layers: list[nn.Module] = []
        current = min(map_size)
        while current < side:
            narrower = max(32, width // 2)
            # Nearest-neighbor upsampling and a convolution: a transposed convolution leaves a checkerboard pattern.
            layers.append(nn.Upsample(scale_factor=2))
            layers.append(nn.Conv2d(width, narrower, 3, padding=1, bias=norm == "none"))
            if norm != "none":
                layers.append(nn.BatchNorm2d(narrower) if norm == "batch" else nn.GroupNorm(1, narrower))
            layers.append(nn.ReLU(inplace=True))
            current, width = 2 * current, narrower
        self.layers = nn.Sequential(*layers)
        self.output = nn.Conv2d(width, output, 3, padding=1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Return `[B, output, side, side]`, resized before the last convolution if doubling did not reach `side` exactly."""
        x = self.layers(feature_map)
        if x.shape[-1] != self.side or x.shape[-2] != self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear")
        output: Tensor = self.output(x)
        return output


class CodeDecoder(nn.Sequential):
    """Decode latent codes `[B, code]` to images `[B, channels, side, side]`: a linear layer to a 4×4 map, then convolutions."""

    def __init__(self, code: int, width: int, side: int, channels: int, norm: Norm = "batch") -> None:
        small = min(4, side)
        super().__init__(
            nn.Linear(code, width * small * small),
            nn.Unflatten(1, (width, small, small)),
            ConvDecoder(width, (small, small), side, channels, norm),
        )


def map_size(encoder: Encoder, image: Tensor) -> tuple[int, int]:
    """Return height and width of an encoder's feature map for `[1, C, H, W]`, keeping its mode and statistics."""
    with torch.no_grad(), in_eval_mode(encoder):
        height, width = encoder.feature_map(image).shape[2:]
    return height, width


def flat_map_head(encoder: Encoder, data: DataInfo, width: int) -> nn.Sequential:
    """Return a layer on the flattened feature map, `[B, width]`, that knows where in the image everything is."""
    height, across = map_size(encoder, torch.zeros(1, data.channels, data.size, data.size))
    return nn.Sequential(nn.Flatten(), nn.Linear(encoder.width * height * across, width), nn.ReLU())


def sine_positions(grid: tuple[int, ...], width: int, device: torch.device | None = None) -> Tensor:
    """Return fixed sine-cosine positions of a grid, `[N, width]` in row-major order: an equal share encodes each axis.

    (Vaswani et al., 2017, section 3.5, once per axis.) What is left of a width that does not divide is zero. Raises ValueError
    if it is too small.
    """
    count = width // (2 * len(grid))
    if count < 1:
        raise ValueError(f"sine-cosine positions of {len(grid)} axes need a width of {2 * len(grid)} or more (got {width})")
    rates = 10_000.0 ** -(torch.arange(count, device=device) / count)
    parts = []
    for axis, side in enumerate(grid):
        angle = torch.arange(side, device=device)[:, None] * rates
        place = torch.cat([angle.sin(), angle.cos()], dim=1)
        parts.append(place.view(*(side if other == axis else 1 for other in range(len(grid))), -1).expand(*grid, -1))
    return F.pad(torch.cat(parts, dim=-1).flatten(0, -2), (0, width - 2 * count * len(grid)))
