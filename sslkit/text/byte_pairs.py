"""Byte-pair tokens: words as pieces that occur often, learned from the captions themselves and kept with the weights."""

import json
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from sslkit.extras import load_extra
from sslkit.text.tokenizer import join_merges

PADDING, BEGIN, END = 0, 1, 2


_SPECIAL = ("<padding>", "<begin>", "<end>")


_RARE = 2  # a piece is made of pairs that occur as often


class BytePairs:
    """Turn texts into tokens; `merges` are pairs of pieces in the order in which they are joined (Sennrich et al., 2016).

    Texts are lower-cased and split at blanks and signs; what was never seen is spelled in bytes, so that any text has tokens.
    """

    def __init__(self, merges: list[tuple[str, str]]) -> None:
        tokenizers = _tokenizers()
        pieces = [*_SPECIAL, *join_merges(merges)]
        self.merges, self.words = merges, len(pieces)
        self._tokenizer = _plain()
        self._tokenizer.model = tokenizers.models.BPE({piece: place for place, piece in enumerate(pieces)}, merges)

    @classmethod
    def learn(cls, texts: list[str], words: int) -> Self:
        """Learn at most so many tokens from texts."""
        tokenizers = _tokenizers()
        tokenizer = _plain()
        trainer = tokenizers.trainers.BpeTrainer(
            vocab_size=words,
            min_frequency=_RARE,
            special_tokens=list(_SPECIAL),
            initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        )
        tokenizer.train_from_iterator(texts, trainer)
        return cls([(first, second) for first, second in json.loads(tokenizer.to_str())["model"]["merges"]])

    @classmethod
    def read(cls, spelling: bytes) -> Self:
        """Return what `spelled` wrote; raises ValueError for anything else."""
        pairs = [tuple(line.split(" ")) for line in spelling.decode().split("\n") if line]
        if any(len(pair) != 2 for pair in pairs):
            raise ValueError("a line that holds no pair")
        return cls([(pair[0], pair[1]) for pair in pairs])

    def spelled(self) -> bytes:
        """Return the merges as bytes: a pair a line."""
        return "\n".join(f"{first} {second}" for first, second in self.merges).encode()

    def lengths(self, texts: list[str]) -> list[int]:
        """Return how many tokens each text has, the first and the last included."""
        return [len(encoding.ids) + 2 for encoding in self._tokenizer.encode_batch(texts)]

    def __call__(self, texts: list[str], length: int) -> NDArray[np.int32]:
        """Return tokens `[N, length]`: begin, the pieces (as many as have room), end, padding."""
        tokens = np.full((len(texts), length), PADDING, dtype=np.int32)
        for row, encoding in enumerate(self._tokenizer.encode_batch(texts)):
            ids = [BEGIN, *encoding.ids[: length - 2], END]
            tokens[row, : len(ids)] = ids
        return tokens


def _plain() -> Any:
    """Return a tokenizer that has no pieces yet."""
    tokenizers = _tokenizers()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.normalizer = tokenizers.normalizers.Sequence([tokenizers.normalizers.NFKC(), tokenizers.normalizers.Lowercase()])
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


def _tokenizers() -> Any:
    for part in ("models", "normalizers", "pre_tokenizers", "trainers"):
        load_extra(f"tokenizers.{part}", "text", "reading captions")
    return load_extra("tokenizers", "text", "reading captions")
