"""What a language model has to beat: counts of tokens and of pairs, and programs that compress text."""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from sslkit.text.tokenizer import Ids

_DISCOUNT = 0.75  # of the counts of pairs (Kneser & Ney, 1995)
_PIECES = 2**14  # sentences that are counted at once
_HISTORY = 2**25  # bytes of training text that compressors see at most: none looks further back
COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "zlib -9": lambda text: zlib.compress(text, 9),
    "bzip2 -9": lambda text: bz2.compress(text, 9),
    "xz -9e": lambda text: lzma.compress(text, preset=9 | lzma.PRESET_EXTREME),
}


@dataclass(frozen=True)
class TokenCounts:
    """How often tokens, and pairs of neighbors, occur in a text; `pairs` are first * ids + second, ascending."""

    ids: int
    tokens: NDArray[np.int64]  # [ids]
    pairs: NDArray[np.int64]
    pair_counts: NDArray[np.int64]

    @classmethod
    def of(cls, text: Iterable[Ids], ids: int) -> "TokenCounts":
        """Count the tokens of a text in pieces; pairs across two pieces count, too."""
        tokens, previous = np.zeros(ids, dtype=np.int64), np.zeros(0, dtype=np.int64)
        pairs, pair_counts = np.zeros(0, np.int64), np.zeros(0, np.int64)
        for piece in _merge_pieces(text):
            run = np.concatenate([previous, piece.astype(np.int64)])
            tokens += np.bincount(piece, minlength=ids)
            more, counts = np.unique(run[:-1] * ids + run[1:], return_counts=True)
            pairs, places = np.unique(np.concatenate([pairs, more]), return_inverse=True)
            pair_counts = np.bincount(places, weights=np.concatenate([pair_counts, counts])).astype(np.int64)
            previous = run[-1:]
        return cls(ids, tokens, pairs, pair_counts)

    def unigram(self, tokens: Ids, pieces: int | None = None) -> NDArray[np.float64]:
        """Return -log p of each token by its frequency, one added to every count, in nats `[N]`.

        With `pieces`, among so many ids, the first ones; p of the others is 1.
        """
        frequencies = self._frequencies()
        if pieces is not None:
            frequencies = np.concatenate([frequencies[:pieces] / frequencies[:pieces].sum(), np.ones(self.ids - pieces)])
        losses: NDArray[np.float64] = -np.log(frequencies[tokens])
        return losses

    def bigram(self, previous: Ids, tokens: Ids) -> NDArray[np.float64]:
        """Return -log p of each token after the one before it, by absolute discounting (Ney et al., 1994), in nats `[N]`.

        What is taken off the counts of pairs goes to the frequencies of tokens.
        """
        firsts = self.pairs // self.ids
        after = np.bincount(firsts, weights=self.pair_counts, minlength=self.ids)  # pairs that begin with a token
        kinds = np.bincount(firsts, minlength=self.ids)
        queries = previous.astype(np.int64) * self.ids + tokens
        places = np.searchsorted(self.pairs, queries).clip(max=max(0, len(self.pairs) - 1))
        count = np.where(self.pairs[places] == queries, self.pair_counts[places], 0) if len(self.pairs) else 0 * queries
        total = np.maximum(after[previous], 1)
        left = np.where(after[previous] > 0, _DISCOUNT * kinds[previous] / total, 1.0)
        probability = np.maximum(count - _DISCOUNT, 0) / total + left * self._frequencies()[tokens]
        losses: NDArray[np.float64] = -np.log(probability)
        return losses

    def _frequencies(self) -> NDArray[np.float64]:
        frequencies: NDArray[np.float64] = (self.tokens + 1) / (self.tokens.sum() + self.ids)
        return frequencies


def _merge_pieces(text: Iterable[Ids]) -> Iterator[Ids]:
    """Yield the same tokens in larger pieces, of which each is merged with all pairs so far."""
    pieces = iter(text)
    while some := list(islice(pieces, _PIECES)):
        yield np.concatenate(some)


def compressed_bits(name: str, history: bytes, text: bytes) -> int:
    """Return the bits by which a compressed training text grows if the test text follows it."""
    compress, history = COMPRESSORS[name], history[-_HISTORY:]
    return 8 * (len(compress(history + text)) - len(compress(history)))
