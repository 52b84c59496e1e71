"""What encoders of token ids have in common: the tokenizer that they keep, and padding that counts for nothing."""

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.text.tokenizer import CLS, PAD, SEP, SPECIALS, Ids, Tokenizer

_LENGTH_STEP = 16  # tokens, by which batches differ in length


@dataclass(frozen=True)
class Framing:
    """Put special tokens around the tokens of one or two texts; `padding` fills up."""

    padding: int
    first: tuple[int, ...] = ()  # before the first text
    end: tuple[int, ...] = ()  # after each text

    def __call__(self, texts: list[Ids], size: int) -> Ids:
        """Return the framed tokens of a text or of a pair, `size` at most: of longer ones the end of the longer text is cut."""
        room = size - len(self.first) - len(texts) * len(self.end)
        lengths = [len(text) for text in texts]
        if len(texts) == 2 and sum(lengths) > room:
            shorter = min(min(lengths), room // 2)
            lengths = [min(length, room - shorter) if length > shorter else length for length in lengths]
            lengths = lengths if sum(lengths) <= room else [room - room // 2, room // 2]
        elif sum(lengths) > room:
            lengths = [room]
        parts = [np.array(self.first, dtype=np.int32)]
        for text, length in zip(texts, lengths, strict=True):
            parts += [text[:length], np.array(self.end, dtype=np.int32)]
        return np.concatenate(parts)

    def pad(self, texts: list[Ids], size: int) -> Ids:
        """Return framed texts as rows of `size` tokens, `[N, size]`, cut or padded."""
        tokens = np.full((len(texts), size), self.padding, dtype=np.int32)
        for row, ids in enumerate(texts):
            framed = self([ids], size)
            tokens[row, : len(framed)] = framed
        return tokens


class TokenEncoder(Encoder):
    """Base of encoders of token ids, int64 `[B, T]`, that keep their tokenizer."""

    modality: ClassVar = "text"
    sample_dims = 1

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that is kept; raises SslkitError if it is damaged."""
        raise TypeError(f"{type(self).__name__} does not define tokenizer()")

    def framing(self) -> Framing:
        """Return what stands around the tokens of a text."""
        return Framing(self.tokenizer().special(PAD))

    @property
    def longest(self) -> int | None:
        """Return the tokens that it takes at most, None for any number."""
        return None

    def check_length(self, size: int) -> None:
        """Raise SslkitError for samples of more tokens than it takes."""
        if self.longest is not None and size > self.longest:
            raise SslkitError(f"{size} tokens exceed the {self.longest} that the encoder takes", "use fewer", flag="context")

    def is_padding(self, sample: Tensor) -> Tensor:
        """Return which tokens are padding, bool `[B, T]`."""
        raise TypeError(f"{type(self).__name__} does not define is_padding()")

    def without_padding(self, sample: Tensor) -> Tensor:
        """Return token ids without most of the columns at the end that are padding in all rows, on a CPU.

        An accelerator would have to wait for the length, and a graph has a fixed one.
        """
        if sample.device.type != "cpu" or torch.compiler.is_compiling():
            return sample
        longest = int((~self.is_padding(sample) * torch.arange(1, sample.shape[1] + 1)).max())
        return sample[:, : max(_LENGTH_STEP, math.ceil(longest / _LENGTH_STEP) * _LENGTH_STEP)]


class TextEncoder(TokenEncoder):
    """Encode token ids, int64 `[B, T]`, of which there are `in_channels`; the last ones are special tokens.

    `token` is the table of input vectors, which a language model's head may share. The tokenizer is kept as `letters` bytes
    of JSON. `causal` encoders have states from which the next token can be predicted.
    """

    causal: bool = False
    token: nn.Embedding
    spelling: Tensor

    def __init__(self, ids: int, width: int, letters: int) -> None:
        super().__init__(width, in_channels=ids)
        self.first_special = ids - len(SPECIALS)
        if self.first_special < 1:
            raise SslkitError(f"a vocabulary of {ids} ids has only special tokens", flag="vocabulary")
        self.register_buffer("spelling", torch.zeros(letters, dtype=torch.uint8))

    def keep_tokenizer(self, content: bytes) -> None:
        """Keep a tokenizer, as `Tokenizer.to_bytes` wrote it, beside the weights."""
        self.spelling.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))

    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer that is kept; raises SslkitError if it is not that of the vectors."""
        return Tokenizer.from_checkpoint(self.spelling.cpu().numpy().tobytes(), self.in_channels)

    def framing(self) -> Framing:
        """Return class token and separators, where the encoder has a class token."""
        padding, cls, sep = (self.first_special + name for name in (PAD, CLS, SEP))
        return Framing(padding, (cls,), (sep,)) if self.class_token else Framing(padding)

    def take_over(self, trained: Encoder) -> None:
        """Take over the tokenizer."""
        assert isinstance(trained, TextEncoder)
        self.spelling.copy_(trained.spelling)

    def is_padding(self, sample: Tensor) -> Tensor:
        """Return which tokens are padding, bool `[B, T]`."""
        return sample == self.first_special + PAD

    def is_text(self, sample: Tensor) -> Tensor:
        """Return which tokens are neither padding nor, where there is a class token, separators, bool `[B, T]`."""
        text = ~self.is_padding(sample)
        return text & (sample != self.first_special + SEP) if self.class_token else text

    def states(self, sample: Tensor) -> Tensor:
        """Return a state for each token, `[B, T, width]`; of causal encoders, of what was read up to it."""
        return self.layers(sample)[-1]

    def next_states(self, sample: Tensor) -> Tensor:
        """Return the states from which a language model predicts the token after each, `[B, T, ...]`."""
        return self.states(sample)

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`."""
        sample = self.without_padding(sample)
        return self.average(self.states(sample), sample)

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return `[B, T, width]`."""
        return self.states(sample)

    def pool_sample(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the average."""
        return self.average(tokens, sample)

    def last_token(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the last of the tokens `[B, T, width]` that is text, which of causal encoders has read all others."""
        places = (self.is_text(sample) * torch.arange(sample.shape[1], device=sample.device)).argmax(dim=1)
        return tokens.gather(1, places[:, None, None].expand(-1, 1, tokens.shape[2]))[:, 0]

    def average(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the mean of the tokens `[B, T, width]` that are text."""
        weight = self.is_text(sample).to(tokens.dtype)[:, self.prefix :, None]
        return (tokens[:, self.prefix :] * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=1)


def check_dropout(dropout: float) -> None:
    """Raise SslkitError for a rate of dropout that is none."""
    if not 0 <= dropout < 1:
        raise SslkitError(f"dropout should be from 0 to below 1 (got {dropout})", flag="encoder_option")
