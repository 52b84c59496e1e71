"""Transformers over token ids: one that reads from left to right, and one that sees both sides."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.nn.transformer import Block, DistanceBias
from sslkit.text.encoders.base import TextEncoder, check_dropout
from sslkit.text.tokenizer import SEP

_DEVIATION = 0.02  # of initial weights (Radford et al., 2018; Devlin et al., 2019)


def gpt_micro(
    in_channels: int,
    size: int = 128,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    letters: int = 0,
) -> "CausalTransformer":
    """Causal transformer (width 128, depth 4, 4 heads) over the tokens of a text; features are their mean."""
    _check(width, heads, dropout)
    return CausalTransformer(in_channels, size, width, depth, heads, dropout, letters)


def bert_micro(
    in_channels: int,
    size: int = 128,
    width: int = 128,
    depth: int = 4,
    heads: int = 4,
    dropout: float = 0.0,
    distance: int = 1,
    letters: int = 0,
) -> "BidirectionalTransformer":
    """Transformer (width 128, depth 4, 4 heads) in which every token sees all others, by learned distances (0: none)."""
    _check(width, heads, dropout)
    return BidirectionalTransformer(in_channels, size, width, depth, heads, dropout, letters, bool(distance))


def _check(width: int, heads: int, dropout: float) -> None:
    if width % heads:
        raise SslkitError(f"width {width} is not a multiple of {heads} heads", flag="encoder_option")
    check_dropout(dropout)


class CausalTransformer(TextEncoder):
    """Pre-norm transformer with learned positions; each token attends to itself and to those before it (GPT-2).

    Padding stands at the end, where no token sees it.
    """

    provides: tuple[str, ...] = ("pooled", "tokens", "layers", "causal")
    causal: bool = True

    def __init__(self, ids: int, size: int, width: int, depth: int, heads: int, dropout: float = 0.0, letters: int = 0) -> None:
        super().__init__(ids, width, letters)
        self.heads = heads
        self.token = nn.Embedding(ids, width)
        self.position = nn.Parameter(torch.empty(size, width))
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, self.causal, dropout) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self._initialize(depth)

    def _initialize(self, depth: int) -> None:
        """Draw small weights; what each block adds is smaller the more blocks there are (Radford et al., 2019)."""
        for parameter in (self.token.weight, self.position):
            nn.init.normal_(parameter, std=_DEVIATION)
        for name, module in self.blocks.named_modules():
            if isinstance(module, nn.Linear):
                adds = name.endswith(("attention.output", "mlp.2"))
                nn.init.normal_(module.weight, std=_DEVIATION / (2 * depth) ** 0.5 if adds else _DEVIATION)
                nn.init.zeros_(module.bias)

    @property
    def longest(self) -> int:
        """Return the number of positions."""
        return len(self.position)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embeddings, then those of each block."""
        blocks = [list(block.parameters()) for block in self.blocks]
        return [[self.position, *self.token.parameters()], *blocks[:-1], [*blocks[-1], *self.norm.parameters()]]

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return the tokens after each block, `[B, T, width]`, the last ones after the final norm."""
        x, visible, bias = self.dropout(self.embed(sample)), self.visible(sample), self.bias(sample.shape[1])
        outputs: list[Tensor] = []
        for block in self.blocks:
            x = block(x, visible, bias)
            outputs.append(x)
        return [*outputs[:-1], self.norm(x)]

    def embed(self, sample: Tensor) -> Tensor:
        """Return the vectors of tokens and positions, `[B, T, width]`."""
        vectors: Tensor = self.token(sample) + self.position[: sample.shape[1]]
        return vectors

    def visible(self, sample: Tensor) -> Tensor | None:
        """Return which tokens may be attended to, None for all that come before."""
        return None

    def bias(self, length: int) -> Tensor | None:
        """Return what is added to the scores of attention, `[heads, T, T]`; None for nothing."""
        return None


class BidirectionalTransformer(CausalTransformer):
    """The same with attention to all tokens but padding, and vectors for the two segments of a pair (Devlin et al., 2019).

    A token belongs to the second segment if a separator stands before it. With `distance`, attention also knows how far apart
    tokens are, which BERT's does not.
    """

    provides: tuple[str, ...] = ("pooled", "tokens", "layers", "class_token")
    causal: bool = False
    class_token: bool = True
    segments: ClassVar[int] = 2

    def __init__(
        self,
        ids: int,
        size: int,
        width: int,
        depth: int,
        heads: int,
        dropout: float = 0.0,
        letters: int = 0,
        distance: bool = True,
    ) -> None:
        super().__init__(ids, size, width, depth, heads, dropout, letters)
        self.distance = DistanceBias(heads, size) if distance else None

    def _initialize(self, depth: int) -> None:
        super()._initialize(depth)
        self.segment = nn.Embedding(self.segments, self.width)
        nn.init.normal_(self.segment.weight, std=_DEVIATION)

    @property
    def prefix(self) -> int:
        """Return 1: the class token stands first."""
        return 1

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the embeddings, then those of each block."""
        first, *blocks = super().stages()
        return [[*first, *self.segment.parameters(), *([] if self.distance is None else self.distance.parameters())], *blocks]

    def embed(self, sample: Tensor) -> Tensor:
        """Return the vectors of tokens, positions and segments, `[B, T, width]`."""
        separators = (sample == self.first_special + SEP).long()
        segment = (separators.cumsum(dim=1) - separators).clamp(max=self.segments - 1)
        vectors: Tensor = super().embed(sample) + self.segment(segment)
        return vectors

    def bias(self, length: int) -> Tensor | None:
        """Return a learned value for each distance from a token to another, `[heads, T, T]`."""
        return None if self.distance is None else self.distance(length)

    def visible(self, sample: Tensor) -> Tensor | None:
        """Return which tokens are no padding, bool `[B, T]`."""
        return ~self.is_padding(sample)
