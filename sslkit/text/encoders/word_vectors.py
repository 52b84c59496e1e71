"""A vector for every word."""

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.tokenizer import PAD, Tokenizer


def word_vectors(in_channels: int, size: int = 128, width: int = 100, letters: int = 0) -> "WordVectors":
    """Table of word vectors, width 100; a text's features are the mean of its words'."""
    return WordVectors(in_channels, width, letters)


class WordVectors(TokenEncoder):
    """Look up a vector for each word; `words` are kept with it, as `letters` bytes of UTF-8.

    A sample is int64 `[B, T]`: places in `words`. Anything else is a word without a vector and counts for nothing.
    """

    provides = ("pooled", "tokens")
    spelling: Tensor

    def __init__(self, words: int, width: int, letters: int) -> None:
        super().__init__(width, in_channels=words)
        self.table = nn.Embedding(words, width)
        nn.init.uniform_(self.table.weight, -0.5 / width, 0.5 / width)  # as word2vec's
        self.register_buffer("spelling", torch.zeros(letters, dtype=torch.uint8))

    @property
    def words(self) -> list[str]:
        """Return the words, most frequent first; none if it was built without."""
        text = self.spelling.cpu().numpy().tobytes().decode()
        return text.split("\n") if text.strip("\0") else []

    def tokenizer(self) -> Tokenizer:
        """Return the words as a tokenizer; words without a vector are unknown to it."""
        table = self.vocabulary()
        assert table is not None
        return Tokenizer("word", table[0])

    def take_over(self, trained: Encoder) -> None:
        """Take over the words."""
        assert isinstance(trained, WordVectors)
        self.spelling.copy_(trained.spelling)

    def vocabulary(self) -> tuple[list[str], Tensor] | None:
        """Return the words, most frequent first, and their vectors."""
        try:
            words = self.words
        except UnicodeDecodeError:
            words = []
        if len(words) != self.in_channels or any(len(word.split()) != 1 for word in words):
            raise SslkitError("the words in the checkpoint are not those of its vectors", "the file was altered", flag="ckpt")
        return words, self.table.weight.detach()

    def spell(self, words: list[str]) -> None:
        """Keep the words beside their vectors."""
        self.spelling.copy_(torch.frombuffer(bytearray(encode_words(words)), dtype=torch.uint8))

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return a vector for each word, `[B, T, width]`, zero for one without."""
        known = self._known(sample)
        vectors: Tensor = self.table(sample.where(known, 0))
        return vectors * known[..., None]

    def forward(self, sample: Tensor) -> Tensor:
        """Return the mean vector of the words that have one, `[B, width]`."""
        known = self._known(sample).sum(dim=1, keepdim=True)
        return self.tokens(sample).sum(dim=1) / known.clamp(min=1)

    def is_padding(self, sample: Tensor) -> Tensor:
        """Return which places are padding, bool `[B, T]`; unknown words are none."""
        return sample == self.in_channels + PAD

    def _known(self, sample: Tensor) -> Tensor:
        return (sample >= 0) & (sample < self.in_channels)


def encode_words(words: list[str]) -> bytes:
    """Return words as the bytes that an encoder keeps."""
    return "\n".join(words).encode()
