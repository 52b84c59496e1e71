"""The encoder of iGPT: a causal transformer over the quantized pixels of a small image (Chen et al., 2020)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.nn.transformer import Block

_CHUNK = 128  # images whose distances to the palette are computed at once, to bound memory


def igpt(
    in_channels: int = 3, size: int = 32, side: int = 16, colors: int = 512, width: int = 128, depth: int = 8, heads: int = 4
) -> "PixelTransformer":
    """Causal transformer over 16×16 palette pixels (width 128, depth 8, 4 heads); features come from its middle layer."""
    if width % heads:
        raise SslkitError(f"width {width} of igpt is not a multiple of its {heads} heads", flag="encoder_option")
    return PixelTransformer(in_channels, side, colors, width, depth, heads)


class PixelTransformer(Encoder):
    """Autoregressive transformer over an image of `side` × `side` pixels, quantized to a palette, in raster order.

    Features are the mean over positions of a middle layer, where the paper finds the best ones (section 4.1): the last layers
    specialize in predicting pixels. The palette is computed by the task and saved with the weights.
    """

    provides = ("pooled", "layers", "palette")
    palette: Tensor

    def __init__(self, in_channels: int, side: int, colors: int, width: int, depth: int, heads: int) -> None:
        super().__init__(width, in_channels)
        self.side, self.middle = side, max(1, depth // 2)
        self.register_buffer("palette", torch.rand(colors, in_channels))
        self.color = nn.Embedding(colors, width)
        self.start = nn.Parameter(0.02 * torch.randn(width))
        self.position = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.blocks = nn.ModuleList(Block(width, heads, causal=True) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        nn.init.normal_(self.color.weight, std=0.02)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embedding, then those of each block."""
        first = [self.start, self.position, *self.color.parameters()]
        blocks = [list(block.parameters()) for block in self.blocks]
        return [first, *blocks[:-1], [*blocks[-1], *self.norm.parameters()]]

    @torch.no_grad()
    def codes(self, image: Tensor) -> Tensor:
        """Return the nearest palette color of each pixel of images `[B, C, H, W]` in raster order, int64 `[B, side * side]`."""
        with torch.autocast(image.device.type, enabled=False):
            small = F.interpolate(image.to(self.palette.dtype), size=(self.side, self.side), mode="area")
            squared_norm, codes = self.palette.square().sum(dim=1), []
            for pixels in small.flatten(2).transpose(1, 2).split(_CHUNK):
                codes.append((squared_norm - 2 * pixels @ self.palette.T).argmin(dim=2))
            return torch.cat(codes)

    def decode(self, codes: Tensor) -> Tensor:
        """Return the images `[B, C, side, side]` of codes `[B, side * side]`."""
        images: Tensor = self.palette[codes].transpose(1, 2).unflatten(2, (self.side, self.side))
        return images

    def code_layers(self, codes: Tensor) -> list[Tensor]:
        """Return each layer's output for codes `[B, N]`, `[B, N, width]`; position i depends on the codes before i only."""
        x = self._embed(codes)
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x)
            outputs.append(x)
        return [*outputs[:-1], self.norm(x)]

    def layers(self, image: Tensor) -> list[Tensor]:
        """Return the tokens after each block, `[B, N, width]`, the last one after the final norm."""
        return self.code_layers(self.codes(image))

    def forward(self, image: Tensor) -> Tensor:
        """Return features `[B, width]`: the mean of the middle layer; later blocks are not computed."""
        x = self._embed(self.codes(image))
        for block in self.blocks[: self.middle]:
            x = block(x)
        return x.mean(dim=1)

    def _embed(self, codes: Tensor) -> Tensor:
        """Return the input of each position, `[B, N, width]`: the embeddings of the previous color and of the position."""
        start = self.start.expand(len(codes), 1, -1)
        return torch.cat([start, self.color(codes[:, :-1])], dim=1) + self.position[: codes.shape[1]]
