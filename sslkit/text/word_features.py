"""Features of single words: what an encoder computes for the first token of each."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.evaluation.session import Layers
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.labeled_words import LabeledWords

_TOKENS = 2**13  # in a batch


def layer_reader(encoder: TokenEncoder, name: str, layer: str) -> Callable[[Tensor], Layers]:
    """Return a function from token ids to tokens `[B, T, width]` of the requested layers by name."""
    if layer == "last" or "layers" not in encoder.provides:
        if layer not in ("last", "all"):
            raise SslkitError(f"{name} has no layers", "use last", flag="layer")
        return lambda tokens: {"last" if layer == "last" else "1": encoder.tokens(tokens)}

    def read(tokens: Tensor) -> Layers:
        layers = {str(number): output for number, output in enumerate(encoder.layers(tokens), start=1)}
        if layer in ("all", "mix"):
            return layers
        if layer not in layers:
            raise SslkitError(f"{name} has {len(layers)} layers (got {layer})", f"use 1 to {len(layers)}", flag="layer")
        return {layer: layers[layer]}

    return read


@torch.no_grad()
def word_features(encoder: TokenEncoder, data: LabeledWords, size: int, read: Callable[[Tensor], Layers]) -> Layers:
    """Return what layers compute for the first token of each word, `[words, width]`; long sentences are divided, never cut.

    Each is divided between words as often as it has to be; of a word that is longer than `size` the end is left out.
    """
    tokenizer, frame = encoder.tokenizer(), encoder.framing()
    room = size - len(frame.first) - len(frame.end)
    rows: list[tuple[NDArray[np.int32], NDArray[np.int64]]] = []  # tokens, and the places of words among them
    for words, _ in data.sentences:
        ids, starts = tokenizer.encode_words(words)
        bounds = [*starts.tolist(), len(ids)]
        first = 0
        while first < len(words):
            last = first + 1
            while last < len(words) and bounds[last + 1] - bounds[first] <= room:
                last += 1
            piece = frame([ids[bounds[first] : bounds[last]]], size)
            rows.append((piece, starts[first:last] - bounds[first] + len(frame.first)))
            first = last
    collected: dict[str, list[Tensor]] = {}
    batch = max(1, _TOKENS // size)
    with show_progress("features of words", data.words) as progress:
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            tokens = torch.full((len(some), size), frame.padding)
            for place, (piece, _) in enumerate(some):
                tokens[place, : len(piece)] = torch.from_numpy(piece)
            sample = encoder.without_padding(tokens).to(encoder.device)
            row = torch.tensor([place for place, (_, starts) in enumerate(some) for _ in starts])
            column = torch.from_numpy(np.concatenate([starts for _, starts in some]))
            for name, output in read(sample).items():
                collected.setdefault(name, []).append(output[row.to(output.device), column.to(output.device)].float().cpu())
            progress.advance(len(row))
    return {name: torch.cat(parts) for name, parts in collected.items()}
