"""`sslkit search`: the samples or words nearest to a query by features."""

import os
import textwrap
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sslkit import registry
from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.contract.modality import JointSpace
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
from sslkit.specs.use import SearchSpec

_QUERIES = 8
_TILE = 96  # pixels of the picture of a text
_MANY = 10_000  # samples from which lists are worth it


@dataclass(frozen=True)
class SearchResult:
    """For each query its neighbors (name, cosine), nearest first."""

    checkpoint: str
    neighbors: dict[str, list[tuple[str, float]]]
    picture: str | None = None


def search(spec: SearchSpec) -> SearchResult:
    """List what is nearest to words, samples or texts, as `sslkit search` does.

    Queries are words for a checkpoint of word vectors, else files or, with a text encoder, texts, which are compared with the
    samples of `--data`.
    """
    checkpoint = read_model(spec.ckpt, part=spec.part)
    encoder = checkpoint.build_encoder(spec.encoder)
    vocabulary = encoder.vocabulary()
    if vocabulary is not None:
        return SearchResult(str(spec.ckpt), _nearest_words(spec, *vocabulary))
    return _nearest_samples(spec, checkpoint, encoder)


def _nearest_words(spec: SearchSpec, words: list[str], table: Tensor) -> dict[str, list[tuple[str, float]]]:
    if spec.approximate:
        raise SslkitError("it is for samples, and these are words", "leave it out", flag="approximate")
    if not spec.queries:
        raise SslkitError("no word is named", "sslkit search WORD... --ckpt FILE")
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


def _nearest_samples(spec: SearchSpec, checkpoint: Checkpoint, encoder: Encoder) -> SearchResult:
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
        return SearchResult(str(spec.ckpt), names, None)
    draw_sheet(sheet, out)
    return SearchResult(str(spec.ckpt), names, str(out))


def nearest_samples(spec: SearchSpec, checkpoint: Checkpoint, encoder: Encoder) -> list[Neighborhood]:
    """Return the nearest of the samples of `--data` to each query: files, texts, or some samples if there are none."""
    modality, source_class = load_modality(checkpoint.evaluated_as), source_of(checkpoint)
    index, size = read_samples(spec, checkpoint), evaluation_size(spec, checkpoint)
    machine = choose_machine(spec.device)
    encoder.to(machine.device)
    samples = source_class.for_evaluation(index, spec, encoder, size)
    bank = cached_features(Model(str(spec.ckpt), encoder, size), samples, "last", "auto", spec)
    features = bank.layers["last"]
    unit = F.normalize(features, dim=1)
    if spec.k >= len(unit):
        raise SslkitError(
            f"{spec.k} neighbors exceed the {len(unit) - 1} other {samples.noun}", f"use 1 to {len(unit) - 1}", flag="k"
        )

    def describe(source: IndexedSource, row: int, value: float) -> Sample:
        return Sample(source.index.name(row), _label(source.index, row), value, modality.thumbnail(source, row))

    def neighborhoods(
        queries: list[Sample], bank_vectors: Tensor, vectors: Tensor, places: list[int] | None
    ) -> list[Neighborhood]:
        """Return the neighbors of queries; `places` are theirs among the samples, which do not count."""
        cosines, nearest = _nearest(bank_vectors, vectors, spec, places)
        rows = torch.from_numpy(bank.rows)[nearest].tolist()
        return [
            Neighborhood(query, [describe(samples, row, value) for row, value in zip(near, values, strict=True)])
            for query, near, values in zip(queries, rows, cosines.tolist(), strict=True)
        ]

    if not spec.queries:
        chosen = np.random.default_rng(spec.seed).permutation(len(unit))[:_QUERIES].tolist()
        queries = [describe(samples, int(bank.rows[place]), 1.0) for place in chosen]
        return neighborhoods(queries, unit, unit[chosen], chosen)
    files = [query for query in spec.queries if os.path.isfile(query)]  # a Path would raise an error for a long text
    texts = [query for query in spec.queries if query not in files]
    results = dict[str, Neighborhood]()
    if texts:
        space = _joint_space(checkpoint, spec, machine.device)
        paths = [text for text in texts if Path(text).suffix.lower() in source_class.kind.extensions]
        if space is None or paths:
            problem = f"{(paths or texts)[0]} is not a file"
            raise SslkitError(problem, f"{checkpoint.metadata['task']} was trained on {samples.noun}")
        queries = [Sample(text, None, 1.0, _picture(text)) for text in texts]
        results |= dict(zip(texts, neighborhoods(queries, space.features(features), space.texts(texts), None), strict=True))
    if files:
        named = replace(index_files("the queries", Path.cwd(), files), file_channels=index.file_channels, range=index.range)
        source = source_class.for_evaluation(named, spec, encoder, size, like=samples)
        taken = extract(encoder, source, machine, spec.batch_size, 0)
        if len(taken.rows) < len(named):
            bad = next(row for row in range(len(named)) if row not in taken.rows)
            raise SslkitError(f"{named.name(bad)} cannot be read", f"queries are files of {samples.noun}")
        queries = [describe(source, row, 1.0) for row in range(len(named))]
        vectors = F.normalize(taken.layers["last"], dim=1)
        results |= dict(zip(files, neighborhoods(queries, unit, vectors, None), strict=True))
    return [results[query] for query in spec.queries]


def _nearest(bank: Tensor, vectors: Tensor, spec: SearchSpec, left_out: list[int] | None) -> tuple[Tensor, Tensor]:
    """Return the cosines and places `[Q, k]` of what is nearest to unit vectors in a bank of them, nearest first.

    `left_out` are the places of the queries themselves.
    """
    if spec.approximate:
        cosines, places = _approximate(bank, vectors, spec.k + 1)
        kept = torch.ones_like(places, dtype=torch.bool)
        kept[:, -1] = False  # the last one, unless the query itself is among the nearest
        for line, place in enumerate(left_out or []):
            if (places[line] == place).any():
                kept[line] = places[line] != place
        return cosines[kept].view(-1, spec.k), places[kept].view(-1, spec.k)
    similarity = vectors @ bank.T
    for line, place in enumerate(left_out or []):
        similarity[line, place] = -2.0
    return largest(similarity, spec.k)


def _approximate(bank: Tensor, vectors: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the same by inverted lists of FAISS, of which a sixteenth is searched; raises SslkitError without the extra."""
    try:
        import faiss
    except ImportError as error:
        raise SslkitError("FAISS is not installed", "pip install 'sslkit[search]'", flag="approximate") from error
    lists = max(1, round(4 * len(bank) ** 0.5) if len(bank) > _MANY else 1)
    quantizer = faiss.IndexFlatIP(bank.shape[1])
    inverted = faiss.IndexIVFFlat(quantizer, bank.shape[1], lists, faiss.METRIC_INNER_PRODUCT)
    values = bank.numpy()
    inverted.train(values)
    inverted.add(values)
    inverted.nprobe = max(1, lists // 16)
    cosines, places = inverted.search(vectors.numpy(), k)
    if (places < 0).any():  # lists with fewer samples than are wanted
        inverted.nprobe = lists
        cosines, places = inverted.search(vectors.numpy(), k)
    return torch.from_numpy(cosines), torch.from_numpy(places)


def _joint_space(checkpoint: Checkpoint, spec: SearchSpec, device: torch.device) -> JointSpace | None:
    """Return where samples and texts lie together, if the checkpoint has a text encoder."""
    if not checkpoint.metadata.get("parts"):
        return None
    spaces = (load_modality(name).joint_space(checkpoint, spec, device) for name in registry.names(registry.MODALITIES))
    return next((space for space in spaces if space is not None), None)


def _picture(text: str) -> Image.Image:
    """Return a text as a picture, for the sheet."""
    tile = Image.new("RGB", (_TILE, _TILE), "white")
    ImageDraw.Draw(tile).multiline_text((4, 4), textwrap.fill(text, 15), fill="black", font=ImageFont.load_default(11))
    return tile


def _label(index: Index, row: int) -> str | None:
    return None if index.labels is None else label_text(index, row)


def _hint(word: str, words: list[str]) -> str:
    near = did_you_mean(word.lower(), words, listing=[])
    return f" ({near})" if near else ""
