"""Encoders of captions: a bag of words, and a small transformer."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.nn.transformer import Block

_PADDING, _END = 0, 2  # tokens, as in sslkit.text.byte_pairs


def caption_cbow(in_channels: int, size: int = 77, width: int = 128, out: int = 128, letters: int = 0) -> "CaptionBag":
    """Mean of token vectors (width 128), whatever their order, and a layer with ReLU; for captions."""
    return CaptionBag(in_channels, width, out, letters)


def caption_transformer(
    in_channels: int, size: int = 77, width: int = 128, depth: int = 2, heads: int = 4, out: int = 128, letters: int = 0
) -> "CaptionTransformer":
    """Causal transformer (width 128, depth 2, 4 heads), whose features are those of the last token; for captions."""
    if width % heads:
        raise SslkitError(f"width {width} of caption_transformer is no multiple of its {heads} heads", flag="encoder_option")
    return CaptionTransformer(in_channels, size, width, depth, heads, out, letters)


class CaptionEncoder(Encoder):
    """Turn tokens of captions, int64 `[B, length]`, into vectors `[B, out]`; `spelling` is their tokenizer."""

    modality: ClassVar = "text"
    sample_dims = 1
    spelling: Tensor

    def __init__(self, words: int, width: int, out: int, letters: int) -> None:
        super().__init__(out, in_channels=words)
        self.token = nn.Embedding(words, width)
        self.output = nn.Linear(width, out, bias=False)
        nn.init.normal_(self.token.weight, std=0.02)
        self.register_buffer("spelling", torch.zeros(letters, dtype=torch.uint8))

    def spell(self, spelling: bytes) -> None:
        """Keep the tokenizer beside the weights."""
        if spelling:  # of captions in which nothing occurs twice, it has no pieces
            self.spelling.copy_(torch.frombuffer(bytearray(spelling), dtype=torch.uint8))


class CaptionBag(CaptionEncoder):
    """Average the vectors of a caption's tokens."""

    def __init__(self, words: int, width: int, out: int, letters: int) -> None:
        super().__init__(words, width, out, letters)
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        nn.init.normal_(self.token.weight, std=1.0)  # means of few are what the layer sees

    def forward(self, sample: Tensor) -> Tensor:
        """Return `[B, out]`."""
        there = (sample != _PADDING)[..., None]
        mean = (self.token(sample) * there).sum(dim=1) / there.sum(dim=1).clamp(min=1)
        features: Tensor = self.output(self.hidden(mean))
        return features


class CaptionTransformer(CaptionEncoder):
    """Read a caption from left to right; at its last token all of it was seen (Radford et al., 2021, section 2.4)."""

    def __init__(self, words: int, size: int, width: int, depth: int, heads: int, out: int, letters: int) -> None:
        super().__init__(words, width, out, letters)
        self.position = nn.Parameter(0.01 * torch.randn(size, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)

    def forward(self, sample: Tensor) -> Tensor:
        """Return `[B, out]`; of captions without an end, at the first token."""
        x = self.norm(self.blocks(self.token(sample) + self.position[: sample.shape[1]]))
        last = (sample == _END).int().argmax(dim=1)
        features: Tensor = self.output(x[torch.arange(x.shape[0], device=x.device), last])
        return features
