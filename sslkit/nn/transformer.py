"""Attention, for transformers that timm has not."""

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Let each of `[B, Q, width]` look at `[B, M, width]`: heads of dot products (Vaswani et al., 2017, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key_value, self.output = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Tensor, causal: bool = False) -> Tensor:
        """Return `[B, Q, width]`; `causal`: each sees only those of `memory` at its own place and before."""
        key, value = self.key_value(memory).chunk(2, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), key, value))
        found = F.scaled_dot_product_attention(query, key, value, is_causal=causal)
        said: Tensor = self.output(found.transpose(1, 2).flatten(2))
        return said


class Block(nn.Module):
    """Look at all places, or (`causal`) at those before, then at each place alone, both after a norm."""

    def __init__(self, width: int, heads: int, causal: bool = False) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads), feed_forward(width)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[B, N, width]`."""
        seen = self.norm1(x)
        x = x + self.attention(seen, seen, self.causal)
        added: Tensor = x + self.mlp(self.norm2(x))
        return added


def feed_forward(width: int) -> nn.Sequential:
    """Return the network of a transformer's block that looks at each place alone."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
