"""A transformer after masked convolutions, which do not leak masked patches (MCMAE; Gao et al., 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.image.encoders.base import PatchEncoder
from sslkit.nn.transformer import attention_kernel


def convvit_micro(
    in_channels: int = 3, size: int = 32, width: int = 128, depth: int = 4, heads: int = 4, conv_depth: int = 1
) -> "ConvViT":
    """Two stages of convolutions, then a transformer on patches of 4 px (width 128, depth 4, 4 heads), as in MCMAE."""
    if width % 4 or width % heads:
        raise SslkitError(f"width of convvit_micro must be a multiple of 4 and of heads (got {width})", flag="encoder_option")
    return ConvViT(in_channels, size // 4, width, depth, heads, conv_depth)


class ConvViT(PatchEncoder):
    """Two convolutional stages, each at half the resolution of the previous, and a transformer on the patches.

    Stages one and two mask their input before each depthwise convolution; their outputs are projected to the patches and added
    to the output of the transformer (Gao et al., 2022, sections 3.1 and 3.2).
    """

    provides = (*PatchEncoder.provides, "masked_convolutions")

    def __init__(self, in_channels: int, side: int, width: int, depth: int, heads: int, conv_depth: int) -> None:
        from timm.models.vision_transformer import Block  # imported here: timm takes seconds to import

        super().__init__(width, in_channels)
        widths = (width // 4, width // 2)
        self.embed1 = nn.Conv2d(in_channels, widths[0], 2, stride=2)
        self.convs1 = nn.ModuleList(MaskedBlock(widths[0]) for _ in range(conv_depth))
        self.embed2 = nn.Conv2d(widths[0], widths[1], 2, stride=2)
        self.convs2 = nn.ModuleList(MaskedBlock(widths[1]) for _ in range(conv_depth))
        self.embed3 = nn.Conv2d(widths[1], width, 1)
        self.bring1, self.bring2 = nn.Conv2d(widths[0], width, 2, stride=2), nn.Conv2d(widths[1], width, 1)
        self.position = nn.Parameter(0.02 * torch.randn(1, width, side, side))
        self.blocks = nn.ModuleList(Block(width, heads, qkv_bias=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)

    @property
    def patch(self) -> int:
        """Return the side of a patch in pixels."""
        return 4

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the convolutional stages, then those of each block."""
        early = [self.embed1, self.convs1, self.embed2, self.convs2, self.embed3, self.bring1, self.bring2]
        first = [self.position, *(parameter for module in early for parameter in module.parameters())]
        blocks = [list(block.parameters()) for block in self.blocks]
        return [first, *blocks[:-1], [*blocks[-1], *self.norm.parameters()]]

    def tokens(
        self, image: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return `[B, N, width]`; `keep`, `mask` and `fill` as in `Encoder.tokens`, for the convolutions too."""
        return self._all_layers(image, keep, mask, fill)[-1]

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the tokens after each block, `[B, N, width]`; the last with convolutions and final norm."""
        return self._all_layers(image)

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the patch tokens on their grid, `[B, width, h, w]`."""
        grid: Tensor = self.tokens(image).transpose(1, 2).unflatten(2, self.grid(image))
        return grid

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`: the mean of all tokens."""
        return self.pool(self.tokens(image))

    def _all_layers(
        self, image: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> list[Tensor]:
        visible = self._visibility(image, keep, mask)
        x = self.embed1(self.normalize(image))
        for block in self.convs1:
            x = block(x, visible)
        skip = self.bring1(x)
        x = self.embed2(x)
        for block in self.convs2:
            x = block(x, visible)
        skip = (skip + self.bring2(x)).flatten(2).transpose(1, 2)
        x = self.embed3(x)
        position: Tensor = self.position
        if position.shape[2:] != x.shape[2:]:
            position = F.interpolate(position, size=x.shape[2:], mode="bicubic", antialias=position.dtype != torch.float64)
        if mask is not None:
            assert fill is not None, "a mask needs a fill vector"
            x = torch.where(mask.view(-1, 1, *x.shape[2:]), fill.to(x.dtype).view(1, -1, 1, 1), x)
            skip = skip * ~mask[:, :, None]
        x = (x + position).flatten(2).transpose(1, 2)
        if keep is not None:
            x, skip = (rows.gather(1, keep[:, :, None].expand(-1, -1, rows.shape[2])) for rows in (x, skip))
        outputs: list[Tensor] = []
        with attention_kernel(x):
            for block in self.blocks:
                x = block(x)
                outputs.append(x)
        return [*outputs[:-1], self.norm(x + skip)]

    def _visibility(self, image: Tensor, keep: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Return 1 for visible and 0 for masked patches, `[B, 1, h, w]`, or None if all are visible."""
        grid = self.grid(image)
        if keep is not None:
            visible = torch.zeros(len(image), grid[0] * grid[1], device=image.device, dtype=image.dtype)
            return visible.scatter(1, keep, 1.0).view(-1, 1, *grid)
        return None if mask is None else (~mask).to(image.dtype).view(-1, 1, *grid)


class MaskedBlock(nn.Module):
    """Depthwise convolution over visible positions, then an MLP at each position (Gao et al., 2022, figure 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = (
            nn.LayerNorm(width),
            nn.LayerNorm(width),
        )  # per position: masked ones must not enter the statistics
        self.inward, self.outward = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.around = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))

    def forward(self, x: Tensor, visible: Tensor | None) -> Tensor:
        """Return `[B, width, h, w]`; positions where `visible` `[B, 1, ...]` is 0 are hidden from their neighbors."""
        inner = self.inward(_norm_channels(self.norm1, x))
        if visible is not None:
            inner = inner * F.interpolate(visible.to(inner.dtype), size=x.shape[2:])
        x = x + self.outward(self.around(inner))
        output: Tensor = x + self.mlp(_norm_channels(self.norm2, x))
        return output


def _norm_channels(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm over the channels of `[B, width, h, w]`."""
    normed: Tensor = norm(x.permute(0, 2, 3, 1))
    return normed.permute(0, 3, 1, 2)
