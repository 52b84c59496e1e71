"""Encoders of captions: a bag of words, and a small transformer."""

from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.text.encoders.base import Framing, TextEncoder
from sslkit.text.encoders.transformer import BidirectionalTransformer, CausalTransformer
from sslkit.text.tokenizer import END, PAD, Tokenizer


def caption_cbow(in_channels: int, size: int = 77, width: int = 128, letters: int = 0) -> "CaptionBag":
    """Mean of token vectors (width 128), whatever their order, and a layer with ReLU; for captions."""
    return CaptionBag(in_channels, width, letters)


def caption_transformer(
    in_channels: int, size: int = 77, width: int = 128, depth: int = 2, heads: int = 4, letters: int = 0
) -> "CaptionTransformer":
    """Causal transformer (width 128, depth 2, 4 heads), whose features are those of the last token; for captions."""
    if width % heads:
        raise SslkitError(f"width {width} of caption_transformer is no multiple of its {heads} heads", flag="encoder_option")
    return CaptionTransformer(in_channels, size, width, depth, heads, letters=letters)


def caption_bidirectional(
    in_channels: int, size: int = 77, width: int = 128, depth: int = 2, heads: int = 4, letters: int = 0
) -> "CaptionReader":
    """Transformer (width 128, depth 2, 4 heads) whose tokens see all others; features are those of the last; for captions."""
    if width % heads:
        raise SslkitError(f"width {width} of caption_bidirectional is no multiple of its {heads} heads", flag="encoder_option")
    return CaptionReader(in_channels, size, width, depth, heads, letters=letters)


def caption_framing(tokenizer: Tokenizer) -> Framing:
    """Return what stands around a caption: an end token after it."""
    return Framing(tokenizer.special(PAD), (), (tokenizer.special(END),))


class CaptionBag(TextEncoder):
    """Average the vectors of a caption's tokens."""

    provides = ("pooled",)

    def __init__(self, ids: int, width: int, letters: int) -> None:
        super().__init__(ids, width, letters)
        self.token = nn.Embedding(ids, width)  # of deviation 1: means of few are what the layer sees
        self.hidden = nn.Sequential(nn.Linear(width, width), nn.ReLU())

    def framing(self) -> Framing:
        """Return the end token after a caption."""
        return caption_framing(self.tokenizer())

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        features: Tensor = self.hidden(self.average(self.token(sample), sample))
        return features


class _EndsWithToken(TextEncoder):
    """A caption's features are the state of the token that ends it."""

    def framing(self) -> Framing:
        """Return the end token after a caption."""
        return caption_framing(self.tokenizer())

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        return self.last_token(self.states(sample), sample)

    def pool_sample(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the last token's."""
        return self.last_token(tokens, sample)


class CaptionTransformer(_EndsWithToken, CausalTransformer):
    """Read a caption from left to right; at its last token all of it was read (Radford et al., 2021, section 2.4)."""


class CaptionReader(_EndsWithToken, BidirectionalTransformer):
    """Read a caption as a whole: each token sees all others, and the end token stands for them."""

    provides: tuple[str, ...] = ("pooled", "tokens", "layers")
    class_token: bool = False

    @property
    def prefix(self) -> int:
        """Return 0: nothing stands before a caption."""
        return 0
