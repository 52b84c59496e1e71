"""`sslkit neighbors`: nearest neighbors of words or samples by an encoder's features."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.data.index import Index, index_files
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.features import extract
from sslkit.engine.precision import choose_machine
from sslkit.evaluation.embed import label_text, read_samples
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.knn import largest
from sslkit.evaluation.models import Model
from sslkit.evaluation.splits import evaluation_size, source_of
from sslkit.files import output_path
from sslkit.registry import load_modality
from sslkit.reporting.contact_sheet import draw_sheet
from sslkit.specs.use import NeighborsSpec

_QUERIES = 8


@dataclass(frozen=True)
class NeighborsResult:
    """For each query its neighbors (name, cosine), nearest first."""

    checkpoint: str
    neighbors: dict[str, list[tuple[str, float]]]
    picture: str | None = None


def neighbors(spec: NeighborsSpec) -> NeighborsResult:
    """List the nearest neighbors of words or samples, as `sslkit neighbors` does.

    Queries are words for a checkpoint of `skipgram`, else files, which are compared with the samples of `--data`.
    """
    checkpoint = read_model(spec.ckpt, part=spec.part)
    encoder = checkpoint.build_encoder(spec.encoder)
    vocabulary = encoder.vocabulary()
    if vocabulary is not None:
        return NeighborsResult(str(spec.ckpt), _nearest_words(spec, *vocabulary))
    return _nearest_samples(spec, checkpoint, encoder)


def _nearest_words(spec: NeighborsSpec, words: list[str], table: Tensor) -> dict[str, list[tuple[str, float]]]:
    if not spec.queries:
        raise SslkitError("no word is named", "sslkit neighbors WORD... --ckpt FILE")
    places = {word: place for place, word in enumerate(words)}
    unknown = [word for word in spec.queries if word.lower() not in places]
    if unknown:
        raise SslkitError("\n".join(f"{word} is not among the {len(words):,} words{_hint(word, words)}" for word in unknown))
    vectors = F.normalize(table, dim=1)
    neighbors_by_word = {}
    for word in spec.queries:
        place = places[word.lower()]
        cosine = vectors @ vectors[place]
        cosine[place] = -2.0  # not itself
        nearest = cosine.topk(min(spec.k, len(words) - 1))
        neighbors_by_word[word] = [
            (words[other], round(value, 4))
            for value, other in zip(nearest.values.tolist(), nearest.indices.tolist(), strict=True)
        ]
    return neighbors_by_word


@dataclass(frozen=True)
class Sample:
    """A sample beside a query: its name and label, how near it is, and its picture if it has one that can be read."""

    name: str
    label: str | None
    cosine: float
    picture: Image.Image | None


@dataclass(frozen=True)
class Neighborhood:
    """A query, whose cosine is 1, and its neighbors, nearest first."""

    query: Sample
    neighbors: list[Sample]


def _nearest_samples(spec: NeighborsSpec, checkpoint: Checkpoint, encoder: Encoder) -> NeighborsResult:
    out = output_path(spec.out, ".png")
    neighborhoods = nearest_samples(spec, checkpoint, encoder)
    names = {each.query.name: [(sample.name, round(sample.cosine, 4)) for sample in each.neighbors] for each in neighborhoods}
    sheet = [
        (picture, each.query.label, [(sample.picture or picture, sample.label, sample.cosine) for sample in each.neighbors])
        for each in neighborhoods
        if (picture := each.query.picture) is not None
    ]
    if not sheet:
        say(f"no picture was written: {source_of(checkpoint).noun} have none")
        return NeighborsResult(str(spec.ckpt), names, None)
    draw_sheet(sheet, out)
    return NeighborsResult(str(spec.ckpt), names, str(out))


def nearest_samples(spec: NeighborsSpec, checkpoint: Checkpoint, encoder: Encoder) -> list[Neighborhood]:
    """Return the nearest of the samples of `--data` to each query, which are drawn from the data if there are none."""
    modality, source_class = load_modality(checkpoint.evaluated_as), source_of(checkpoint)
    index, size = read_samples(spec, checkpoint), evaluation_size(spec, checkpoint)
    machine = choose_machine(spec.device)
    encoder.to(machine.device)
    samples = source_class.for_evaluation(index, spec, encoder, size)
    bank = cached_features(Model(str(spec.ckpt), encoder, size), samples, "last", "auto", spec)
    unit = F.normalize(bank.layers["last"], dim=1)
    if spec.k >= len(unit):
        raise SslkitError(
            f"{spec.k} neighbors exceed the {len(unit) - 1} other {samples.noun}", f"use 1 to {len(unit) - 1}", flag="k"
        )
    positions: list[int | None]  # of the queries in the data, where they come from it
    queries = samples
    if spec.queries:
        missing = next((query for query in spec.queries if not Path(query).is_file()), None)
        if missing is not None:
            raise SslkitError(f"{missing} is not a file", f"{checkpoint.metadata['task']} was trained on {samples.noun}")
        files = index_files("the queries", Path.cwd(), spec.queries)
        files = replace(files, file_channels=index.file_channels, range=index.range)
        queries = source_class.for_evaluation(files, spec, encoder, size, like=samples)
        features = extract(encoder, queries, machine, spec.batch_size, 0)
        if len(features.rows) < len(files):
            bad = next(row for row in range(len(files)) if row not in features.rows)
            raise SslkitError(f"{files.name(bad)} cannot be read", f"queries are files of {samples.noun}")
        vectors, rows = F.normalize(features.layers["last"], dim=1), list(range(len(files)))
        positions = [None] * len(files)
    else:
        chosen = np.random.default_rng(spec.seed).permutation(len(unit))[:_QUERIES]
        vectors, positions = unit[chosen], [int(position) for position in chosen]
        rows = [int(bank.rows[position]) for position in chosen]
    similarity = vectors @ unit.T
    for line, position in enumerate(positions):
        if position is not None:
            similarity[line, position] = -2.0  # not itself
    cosines, nearest = largest(similarity, spec.k)

    def describe(source: IndexedSource, row: int, value: float) -> Sample:
        return Sample(source.index.name(row), _label(source.index, row), value, modality.thumbnail(source, row))

    return [
        Neighborhood(
            describe(queries, row, 1.0), [describe(samples, other, value) for other, value in zip(near, cosine, strict=True)]
        )
        for row, near, cosine in zip(rows, torch.from_numpy(bank.rows)[nearest].tolist(), cosines.tolist(), strict=True)
    ]


def _label(index: Index, row: int) -> str | None:
    return None if index.labels is None else label_text(index, row)


def _hint(word: str, words: list[str]) -> str:
    near = did_you_mean(word.lower(), words, listing=[])
    return f" ({near})" if near else ""
