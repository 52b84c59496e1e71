"""Transformer blocks that timm lacks: cross-attention and causal attention."""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

_FEW_TOKENS = 128


def attention_kernel(tokens: Tensor, biased: bool = False) -> AbstractContextManager[None]:
    """Return a context that chooses the kernel for attention among `tokens` `[B, N, width]`.

    On a CPU in half precision, few tokens attend by plain matrix products: with torch's fused kernel (2.14), training MAE on
    32 px took 2.6 times as long. From about 200 tokens on, the fused kernel is faster. Scores that are `biased` by a parameter
    are computed so in any case: the fused kernel has no gradient for it, and would round differently without one.
    """
    if biased and tokens.device.type == "cpu":
        return sdpa_kernel(SDPBackend.MATH)
    if tokens.device.type == "cpu" and tokens.shape[1] <= _FEW_TOKENS and torch.is_autocast_enabled("cpu"):
        return sdpa_kernel(SDPBackend.MATH)
    return nullcontext()


class Attention(nn.Module):
    """Multi-head attention from queries `[B, Q, width]` to `memory` `[B, M, width]` (Vaswani et al., 2017, section 3.2)."""

    def __init__(self, width: int, heads: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.query, self.key_value, self.output = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(
        self, x: Tensor, memory: Tensor, causal: bool = False, visible: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Return `[B, Q, width]`.

        With `causal`, each query attends to its own and earlier positions of `memory` only; with `visible`, bool `[B, M]`, to
        the positions where it is true. `bias`, `[heads, Q, M]` or one for each sample, is added to the scores.
        """
        key, value = self.key_value(memory).chunk(2, dim=2)
        query, key, value = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), key, value))
        mask = None if visible is None else visible[:, None, None]
        if bias is not None:
            bias = bias.to(query.dtype)
            mask = bias if mask is None else bias.where(mask, float("-inf"))
        dropout = self.dropout if self.training else 0.0
        with attention_kernel(memory, bias is not None):
            attended = F.scaled_dot_product_attention(query, key, value, mask, dropout, is_causal=causal)
        # How the values lie in memory depends on the kernel, and exports to ONNX replace it.
        attended = attended.transpose(1, 2)
        if torch.compiler.is_exporting():
            attended = attended.clone(memory_format=torch.contiguous_format)
        output: Tensor = self.output(attended.flatten(2))
        return output


class Block(nn.Module):
    """A pre-norm transformer block: self-attention, optionally causal, and a feed-forward network.

    `dropout` applies to attention weights and to what each of the two adds.
    """

    def __init__(self, width: int, heads: int, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads, dropout), feed_forward(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, visible: Tensor | None = None, bias: Tensor | None = None) -> Tensor:
        """Return `[B, N, width]`; `visible`, bool `[B, N]`, is false at positions that no other may attend to.

        `bias`, `[heads, N, N]` or one for each sample, is added to the scores of attention.
        """
        normalized = self.norm1(x)
        x = x + self.dropout(self.attention(normalized, normalized, self.causal, visible, bias))
        output: Tensor = x + self.dropout(self.mlp(self.norm2(x)))
        return output


class CrossBlock(nn.Module):
    """A pre-norm transformer block that also attends to a memory, between self-attention and the feed-forward network."""

    def __init__(self, width: int, heads: int, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        self.causal = causal
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.cross_attention = Attention(width, heads, dropout), Attention(width, heads, dropout)
        self.mlp, self.dropout = feed_forward(width), nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, visible: Tensor | None = None) -> Tensor:
        """Return `[B, N, width]`; `memory` is `[B, M, width]`, and `visible`, bool `[B, N]`, as for `Block`."""
        normalized = self.norm1(x)
        x = x + self.dropout(self.attention(normalized, normalized, self.causal, visible))
        x = x + self.dropout(self.cross_attention(self.norm2(x), memory))
        output: Tensor = x + self.dropout(self.mlp(self.norm3(x)))
        return output


class DistanceBias(nn.Module):
    """Learn a value for each distance between tokens, which is added to the scores of attention (Shaw et al., 2018).

    It starts from a penalty that is largest for the first head and small for the last (ALiBi; Press et al., 2022): without,
    a masked language model of four layers had not begun to attend to neighbors after 4,000 steps.
    """

    def __init__(self, heads: int, size: int) -> None:
        super().__init__()
        self.size = size
        distance = torch.arange(2 * size - 1).sub(size - 1).abs()
        self.value = nn.Parameter(-(4.0 ** -torch.arange(heads))[:, None] * distance)

    def forward(self, length: int) -> Tensor:
        """Return the values for `length` tokens, `[heads, T, T]`."""
        place = torch.arange(length, device=self.value.device)
        return self.value[:, place[None] - place[:, None] + self.size - 1]


def feed_forward(width: int) -> nn.Sequential:
    """Return the position-wise feed-forward network of a transformer block, four times as wide inside."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
