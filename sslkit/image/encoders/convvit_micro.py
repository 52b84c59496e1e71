"""Convolutions before a transformer, masked so that hidden patches do not leak (Gao et al., 2022)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.image.encoders.base import PatchEncoder


def convvit_micro(
    in_channels: int = 3, size: int = 32, width: int = 128, depth: int = 4, heads: int = 4, conv_depth: int = 1
) -> "ConvViT":
    """Two stages of convolutions, then a transformer on patches of 4 px (width 128, depth 4, 4 heads), as in MCMAE."""
    if width % 4 or width % heads:
        raise SslkitError(f"width of convvit_micro should be a multiple of 4 and of heads (got {width})", flag="encoder_option")
    return ConvViT(in_channels, size // 4, width, depth, heads, conv_depth)


class ConvViT(PatchEncoder):
    """Halve the image twice with convolutions, then read the patches with a transformer.

    Stages one and two see masked inputs before each convolution over places; what they say is brought to the patches and added
    to what the transformer says (Gao et al., 2022, sections 3.1 and 3.2).
    """

    offers = (*PatchEncoder.offers, "masked_convolutions")

    def __init__(self, in_channels: int, side: int, width: int, depth: int, heads: int, conv_depth: int) -> None:
        from timm.models.vision_transformer import Block  # not at the top: timm takes seconds to import

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
        """Return the parameters of the convolutions, and of the blocks."""
        early = [self.embed1, self.convs1, self.embed2, self.convs2, self.embed3, self.bring1, self.bring2]
        first = [self.position, *(parameter for module in early for parameter in module.parameters())]
        blocks = [list(block.parameters()) for block in self.blocks]
        return [first, *blocks[:-1], [*blocks[-1], *self.norm.parameters()]]

    def tokens(
        self, image: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return `[B, N, width]`; `keep`, `mask` and `fill` as elsewhere: convolutions see no hidden patch either."""
        return self._read(image, keep, mask, fill)[-1]

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the tokens after each block, `[B, N, width]`, the last one with the convolutions added, and normed."""
        return self._read(image)

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the patch tokens in their places, `[B, width, h, w]`."""
        grid: Tensor = self.tokens(image).transpose(1, 2).unflatten(2, self.grid(image))
        return grid

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`: the mean of all tokens."""
        return self.pool(self.tokens(image))

    def _read(
        self, image: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> list[Tensor]:
        seen = self._seen(image, keep, mask)
        x = self.embed1(self.normalize(image))
        for block in self.convs1:
            x = block(x, seen)
        added = self.bring1(x)
        x = self.embed2(x)
        for block in self.convs2:
            x = block(x, seen)
        added = (added + self.bring2(x)).flatten(2).transpose(1, 2)
        x = self.embed3(x)
        position: Tensor = self.position
        if position.shape[2:] != x.shape[2:]:
            position = F.interpolate(position, size=x.shape[2:], mode="bicubic", antialias=position.dtype != torch.float64)
        if mask is not None:
            assert fill is not None, "a mask needs something to fill in"
            x = torch.where(mask.view(-1, 1, *x.shape[2:]), fill.to(x.dtype).view(1, -1, 1, 1), x)
            added = added * ~mask[:, :, None]
        x = (x + position).flatten(2).transpose(1, 2)
        if keep is not None:
            x, added = (rows.gather(1, keep[:, :, None].expand(-1, -1, rows.shape[2])) for rows in (x, added))
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return [*outputs[:-1], self.norm(x + added)]

    def _seen(self, image: Tensor, keep: Tensor | None, mask: Tensor | None) -> Tensor | None:
        """Return which patches convolutions may see, `[B, 1, h, w]`, if not all."""
        grid = self.grid(image)
        if keep is not None:
            seen = torch.zeros(len(image), grid[0] * grid[1], device=image.device, dtype=image.dtype)
            return seen.scatter(1, keep, 1.0).view(-1, 1, *grid)
        return None if mask is None else (~mask).to(image.dtype).view(-1, 1, *grid)


class MaskedBlock(nn.Module):
    """Look at the places around, of those that are seen, then at each alone (Gao et al., 2022, figure 2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)  # per place: hidden ones must not be in statistics
        self.inward, self.outward = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.around = nn.Conv2d(width, width, 5, padding=2, groups=width)
        self.mlp = nn.Sequential(nn.Conv2d(width, 4 * width, 1), nn.GELU(), nn.Conv2d(4 * width, width, 1))

    def forward(self, x: Tensor, seen: Tensor | None) -> Tensor:
        """Return `[B, width, h, w]`; of `seen` `[B, 1, ...]`, 0 hides a place from those around it."""
        looked = self.inward(_each_place(self.norm1, x))
        if seen is not None:
            looked = looked * F.interpolate(seen.to(looked.dtype), size=x.shape[2:])
        x = x + self.outward(self.around(looked))
        added: Tensor = x + self.mlp(_each_place(self.norm2, x))
        return added


def _each_place(norm: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm over the channels of `[B, width, h, w]`."""
    normed: Tensor = norm(x.permute(0, 2, 3, 1))
    return normed.permute(0, 3, 1, 2)
