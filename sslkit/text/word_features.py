"""Features of single words: what an encoder computes for the first token of each."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.evaluation.session import Layers
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.labeled_words import LabeledWords

_TOKENS = 2**13  # in a batch


@dataclass(frozen=True)
class WordRow:
    """A part of a sentence: framed token ids, and the places of its words' first tokens among them."""

    tokens: NDArray[np.int32]
    places: NDArray[np.int64]


def word_rows(encoder: TokenEncoder, data: LabeledWords, size: int) -> list[WordRow]:
    """Return sentences as rows of tokens, in order; long ones are divided between words, as often as they have to be.

    Of a word that is longer than `size` the end is left out.
    """
    tokenizer, frame = encoder.tokenizer(), encoder.framing()
    room = size - len(frame.first) - len(frame.end)
    rows: list[WordRow] = []
    for words, _ in data.sentences:
        ids, starts = tokenizer.encode_words(words)
        bounds = [*starts.tolist(), len(ids)]
        first = 0
        while first < len(words):
            last = first + 1
            while last < len(words) and bounds[last + 1] - bounds[first] <= room:
                last += 1
            piece = frame([ids[bounds[first] : bounds[last]]], size)
            rows.append(WordRow(piece, starts[first:last] - bounds[first] + len(frame.first)))
            first = last
    return rows


def pad_rows(rows: list[WordRow], encoder: TokenEncoder, size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return tokens `[B, T]` of rows on the encoder's device, and where words begin: their rows and columns, `[words]` each."""
    tokens = torch.full((len(rows), size), encoder.framing().padding)
    for number, row in enumerate(rows):
        tokens[number, : len(row.tokens)] = torch.from_numpy(row.tokens)
    numbers = torch.tensor([number for number, row in enumerate(rows) for _ in row.places])
    columns = torch.from_numpy(np.concatenate([row.places for row in rows]))
    device = encoder.device
    return encoder.without_padding(tokens).to(device), numbers.to(device), columns.to(device)


@torch.no_grad()
def word_features(encoder: TokenEncoder, data: LabeledWords, size: int, read: Callable[[Tensor], Layers]) -> Layers:
    """Return what layers compute for the first token of each word, `[words, width]`."""
    rows = word_rows(encoder, data, size)
    collected: dict[str, list[Tensor]] = {}
    batch = max(1, _TOKENS // size)
    with show_progress("features of words", data.words) as progress:
        for start in range(0, len(rows), batch):
            tokens, numbers, columns = pad_rows(rows[start : start + batch], encoder, size)
            for name, output in read(tokens).items():
                collected.setdefault(name, []).append(output[numbers, columns].float().cpu())
            progress.advance(len(numbers))
    return {name: torch.cat(parts) for name, parts in collected.items()}
