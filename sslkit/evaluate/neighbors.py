"""`sslkit neighbors`: which words mean nearly the same."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from sslkit.encoders.word_vectors import WordVectors
from sslkit.engine.checkpoint import read_model
from sslkit.errors import SslkitError, did_you_mean
from sslkit.specs import NeighborsSpec


@dataclass(frozen=True)
class NeighborsResult:
    """Hold what `sslkit neighbors --json` prints: for each word the nearest ones with their cosines."""

    checkpoint: str
    neighbors: dict[str, list[tuple[str, float]]]


@torch.no_grad()
def neighbors(spec: NeighborsSpec) -> NeighborsResult:
    """Find the nearest words by cosine; everything `sslkit neighbors` does."""
    checkpoint = read_model(spec.ckpt)
    encoder = checkpoint.build_encoder(allowed=spec.encoder)
    if not isinstance(encoder, WordVectors):
        raise SslkitError(
            f"--ckpt: {spec.ckpt} has no words, it was trained by {checkpoint.metadata['task']}", "use skipgram's"
        )
    try:
        words = encoder.words
    except UnicodeDecodeError:
        words = []
    if len(words) != encoder.in_channels:
        raise SslkitError(f"--ckpt: the words in {spec.ckpt} are not those of its vectors", "the file was altered")
    places = {word: place for place, word in enumerate(words)}
    unknown = [word for word in spec.words if word.lower() not in places]
    if unknown:
        raise SslkitError("\n".join(f"{word} is none of the {len(words):,} words{_hint(word, words)}" for word in unknown))
    vectors = F.normalize(encoder.table.weight, dim=1)
    found = {}
    for word in spec.words:
        place = places[word.lower()]
        cosine = vectors @ vectors[place]
        cosine[place] = -2.0  # not itself
        nearest = cosine.topk(min(spec.k, len(words) - 1))
        found[word] = [
            (words[other], round(value, 4))
            for value, other in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
        ]
    return NeighborsResult(str(spec.ckpt), found)


def _hint(word: str, words: list[str]) -> str:
    near = did_you_mean(word.lower(), words, listing=[])
    return f" ({near})" if near else ""
