"""`sslkit neighbors`: what is nearest to words, or to images, by an encoder's features."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, UnreadableSampleError, did_you_mean
from sslkit.data.index import Index, index_files
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.features import extract
from sslkit.engine.precision import choose_device
from sslkit.evaluation.embed import label_text, read_samples
from sslkit.evaluation.features import cached
from sslkit.evaluation.knn import largest
from sslkit.evaluation.models import Model
from sslkit.files import output_path
from sslkit.image.decode import read_canvas
from sslkit.image.source import ImageSource
from sslkit.reporting.contact_sheet import draw_sheet
from sslkit.specs.use import NeighborsSpec
from sslkit.text.encoders import WordVectors
from sslkit.text.word_vectors import vocabulary

_QUERIES = 8


@dataclass(frozen=True)
class NeighborsResult:
    """Hold what `sslkit neighbors --json` prints: for each query its nearest (name, cosine), nearest first."""

    checkpoint: str
    neighbors: dict[str, list[tuple[str, float]]]
    picture: str | None = None


def neighbors(spec: NeighborsSpec) -> NeighborsResult:
    """List what is nearest to words or images; everything `sslkit neighbors` does.

    Queries are words for a checkpoint of `skipgram`, else image files, which are compared with those of `--data`.
    """
    checkpoint = read_model(spec.ckpt)
    encoder = checkpoint.build_encoder(spec.encoder)
    if isinstance(encoder, WordVectors):
        return NeighborsResult(str(spec.ckpt), _near_words(spec, encoder))
    checkpoint.check_images(spec.data)
    return _near_images(spec, checkpoint, encoder)


def _near_words(spec: NeighborsSpec, encoder: WordVectors) -> dict[str, list[tuple[str, float]]]:
    if not spec.queries:
        raise SslkitError("which words?", "sslkit neighbors WORD... --ckpt FILE")
    words = vocabulary(encoder, spec.ckpt)
    places = {word: place for place, word in enumerate(words)}
    unknown = [word for word in spec.queries if word.lower() not in places]
    if unknown:
        raise SslkitError("\n".join(f"{word} is none of the {len(words):,} words{_hint(word, words)}" for word in unknown))
    vectors = F.normalize(encoder.table.weight, dim=1)
    found = {}
    for word in spec.queries:
        place = places[word.lower()]
        cosine = vectors @ vectors[place]
        cosine[place] = -2.0  # not itself
        nearest = cosine.topk(min(spec.k, len(words) - 1))
        found[word] = [
            (words[other], round(value, 4))
            for value, other in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
        ]
    return found


def _near_images(spec: NeighborsSpec, checkpoint: Checkpoint, encoder: Encoder) -> NeighborsResult:
    out = output_path(spec.out, ".png")
    index = read_samples(spec, checkpoint)
    size = checkpoint.size if spec.size == "auto" else spec.size
    encoder.to(choose_device(spec.device)[0])
    images = ImageSource.of(index, spec, size)
    bank = cached(Model(str(spec.ckpt), encoder, size), images, "last", "auto", spec)
    unit = F.normalize(bank.layers["last"], dim=1)
    if spec.k >= len(unit):
        raise SslkitError(f"{spec.k} neighbors among {len(unit)} images", f"give 1 to {len(unit) - 1}", flag="k")
    own: list[int | None]
    if spec.queries:
        missing = next((query for query in spec.queries if not Path(query).is_file()), None)
        if missing is not None:
            task = checkpoint.metadata["task"]
            raise SslkitError(f"{missing} is not a file", f"{task} was trained on images; words need a checkpoint of skipgram")
        asked = index_files("the queries", Path.cwd(), spec.queries)
        found = extract(encoder, ImageSource.of(asked, spec, size, images.canvases.canvas), spec.batch_size, 0)
        if len(found.rows) < len(asked):
            bad = next(row for row in range(len(asked)) if row not in found.rows)
            raise SslkitError(f"{asked.name(bad)} is not an image that can be read", "queries are image files")
        queries, places = F.normalize(found.layers["last"], dim=1), list(range(len(asked)))
        own = [None] * len(asked)
    else:
        drawn = np.random.default_rng(spec.seed).permutation(len(unit))[:_QUERIES]
        queries, asked, own = unit[drawn], index, [int(place) for place in drawn]
        places = [int(bank.rows[place]) for place in drawn]
    similarity = queries @ unit.T
    for line, place in enumerate(own):
        if place is not None:
            similarity[line, place] = -2.0  # not itself
    cosines, nearest = largest(similarity, spec.k)
    result, rows, side = {}, [], images.canvases.canvas
    for place, near, cosine in zip(places, torch.from_numpy(bank.rows)[nearest].tolist(), cosines.tolist(), strict=True):
        result[asked.name(place)] = [(index.name(row), round(value, 4)) for row, value in zip(near, cosine, strict=True)]
        shown = [(_picture(index, row, side), _label(index, row), value) for row, value in zip(near, cosine, strict=True)]
        rows.append((_picture(asked, place, side), _label(asked, place), shown))
    draw_sheet(rows, out)
    return NeighborsResult(str(spec.ckpt), result, str(out))


def _picture(index: Index, row: int, side: int) -> Image.Image:
    try:
        canvas = read_canvas(index, row, side)
    except UnreadableSampleError as error:  # it could be read a moment ago
        raise SslkitError(f"{index.name(row)} cannot be read any more: {error}") from error
    return Image.fromarray(canvas if canvas.shape[2] == 3 else canvas[..., 0])


def _label(index: Index, row: int) -> str | None:
    return None if index.labels is None else label_text(index, row)


def _hint(word: str, words: list[str]) -> str:
    near = did_you_mean(word.lower(), words, listing=[])
    return f" ({near})" if near else ""
