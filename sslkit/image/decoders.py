"""Decoders that stand on an encoder during pretraining."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.options import TaskOptions
from sslkit.nn.heads import Norm
from sslkit.nn.norms import in_eval_mode

Layers = Annotated[int, Field(ge=1, le=64)]


Width = Annotated[int, Field(ge=32, multiple_of=32)]


class PatchDecoder(nn.Module):
    """Be a small transformer that says something about every patch, seen or not (He et al., 2022, section 3).

    Where the encoder sees the visible patches only (`fills`), a mask token stands for each of the others. Positions are
    fixed sines and cosines.
    """

    positions: Tensor

    def __init__(
        self, encoder_width: int, width: int, depth: int, grid: tuple[int, int], output: int, fills: bool = True
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
        """Return `[B, N, output]` of tokens `[B, prefix + N, encoder width]`, or of the patches `keep` `[B, K]` only."""
        x = self.embed(tokens)
        patches = x[:, prefix:]
        if keep is not None:
            # Every patch gets its own token where it was seen.
            everywhere = self.mask_token.to(x.dtype).expand(len(x), len(self.positions), -1)
            patches = everywhere.scatter(1, keep[:, :, None].expand(-1, -1, x.shape[2]), patches)
        patches = patches + self.positions  # in full precision, as all that is added up from here on
        x = self.norm(self.blocks(torch.cat([x[:, :prefix], patches], dim=1)))
        said: Tensor = self.output(x[:, prefix:])
        return said


class PatchDecoderOptions(TaskOptions):
    """Hold how large a patch decoder is (He et al., 2022, table 1)."""

    decoder_depth: Layers | Literal["auto"] = Field(
        default="auto", description="Blocks of the decoder; auto: 2 for encoders up to 192 wide, else the paper's 8."
    )
    decoder_width: Width | Literal["auto"] = Field(
        default="auto", description="Width of the decoder; auto: 64 for encoders up to 192 wide, else the paper's 512."
    )

    def decoder_size(self, encoder_width: int) -> tuple[int, int]:
        """Return depth and width for an encoder."""
        small, depth, width = encoder_width <= 192, self.decoder_depth, self.decoder_width
        return (2 if small else 8) if depth == "auto" else depth, (64 if small else 512) if width == "auto" else width


class ConvDecoder(nn.Module):
    """Turn a feature map `[B, width, h, w]` into a picture `[B, output, side, side]` by convolutions on doubled maps."""

    def __init__(self, width: int, map_size: tuple[int, int], side: int, output: int, norm: Norm = "batch") -> None:
        super().__init__()
        self.side = side
        layers: list[nn.Module] = []
        reached = min(map_size)
        while reached < side:
            narrower = max(32, width // 2)
            # Nearest and a convolution: a transposed one leaves a checkered pattern.
            layers.append(nn.Upsample(scale_factor=2))
            layers.append(nn.Conv2d(width, narrower, 3, padding=1, bias=norm == "none"))
            if norm != "none":
                layers.append(nn.BatchNorm2d(narrower) if norm == "batch" else nn.GroupNorm(1, narrower))
            layers.append(nn.ReLU(inplace=True))
            reached, width = 2 * reached, narrower
        self.layers = nn.Sequential(*layers)
        self.output = nn.Conv2d(width, output, 3, padding=1)

    def forward(self, feature_map: Tensor) -> Tensor:
        """Return the picture; one that doubling did not meet is resized before the last convolution."""
        x = self.layers(feature_map)
        if x.shape[-1] != self.side or x.shape[-2] != self.side:
            x = F.interpolate(x, size=(self.side, self.side), mode="bilinear")
        picture: Tensor = self.output(x)
        return picture


class CodeDecoder(nn.Sequential):
    """Turn codes `[B, code]` into pictures `[B, channels, side, side]`: a layer to a map of 4×4, then convolutions."""

    def __init__(self, code: int, width: int, side: int, channels: int, norm: Norm = "batch") -> None:
        small = min(4, side)
        super().__init__(
            nn.Linear(code, width * small * small),
            nn.Unflatten(1, (width, small, small)),
            ConvDecoder(width, (small, small), side, channels, norm),
        )


def map_size(encoder: Encoder, image: Tensor) -> tuple[int, int]:
    """Return height and width of an encoder's feature map of an image `[1, C, H, W]`; its mode and statistics stay."""
    with torch.no_grad(), in_eval_mode(encoder):
        height, width = encoder.feature_map(image).shape[2:]
    return height, width


def sine_positions(grid: tuple[int, int], width: int) -> Tensor:
    """Return fixed positions of a grid's patches, `[h * w, width]`: half the values tell the row, half the column.

    (Vaswani et al., 2017, section 3.5, once per axis.) `width` is a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sines and cosines of two axes need a width that is a multiple of 4 (got {width})")
    rates = 10_000.0 ** -(torch.arange(width // 4) / (width // 4))
    axes = [torch.arange(side)[:, None] * rates for side in grid]
    row, column = (torch.cat([angle.sin(), angle.cos()], dim=1) for angle in axes)
    return torch.cat([row[:, None].expand(-1, grid[1], -1), column[None].expand(grid[0], -1, -1)], dim=2).flatten(0, 1)
