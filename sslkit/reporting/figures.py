"""The figures of a report that need the samples: some of them, a map, neighbors, a confusion matrix."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import Modality
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.classifier import has_classifier, read_classifier
from sslkit.engine.precision import choose_device
from sslkit.evaluation.embed import label_text, read_samples
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.knn import Knn, votes
from sslkit.evaluation.models import Model
from sslkit.evaluation.search import Neighborhood, nearest_samples, search
from sslkit.evaluation.session import open_session
from sslkit.evaluation.splits import labeled_fingerprint, source_of
from sslkit.evaluation.statistics import Answers
from sslkit.registry import load_modality
from sslkit.reporting.projection import project
from sslkit.reporting.tiles import TileSheet, encode, tile_sheet
from sslkit.specs.evaluation import KnnSpec
from sslkit.specs.look import ReportSpec
from sslkit.specs.use import SearchSpec

_STRIP, _STRIP_SIDE = 16, 128  # samples at the top of a report, and pixels of their sides
_MAP_SIDE = 48  # pixels of the samples on the map
_NEIGHBORS = 8
_WORDS = 12  # whose neighbors are listed
_LEAST = 10  # samples of a map

_KNN = Knn.protocols[0].settings  # of the votes behind the confusion matrix


@dataclass(frozen=True)
class MapPoint:
    """Position of a sample on the map, both coordinates from 0 to 1, and its label, or its name if there is only that."""

    x: float
    y: float
    label: str | None
    name: str = ""


@dataclass
class Figures:
    """The figures of a run, and why others are missing; what its samples cannot have is not missing."""

    samples: int | None = None
    noun: str = "samples"
    strip: list[bytes] = field(default_factory=list)
    places: list[MapPoint] = field(default_factory=list)
    places_title: str = ""
    tiles: TileSheet | None = None  # of the places, in their order
    neighbors: list[Neighborhood] = field(default_factory=list)
    word_neighbors: dict[str, list[tuple[str, float]]] = field(default_factory=dict)  # with cosines
    confusion: tuple[NDArray[np.int64], list[str]] | None = None
    confusion_title: str = ""
    answers: tuple[str, Answers] | None = None  # fingerprint of the test data, and which samples were classified correctly
    missing: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Samples:
    """The samples that a checkpoint was trained on, as its encoder takes them."""

    index: Index
    encoder: Encoder
    source: IndexedSource
    modality: Modality


def make_figures(checkpoint: Checkpoint, encoder: Encoder, spec: ReportSpec) -> Figures:
    """Return the figures of a checkpoint and its encoder; one that cannot be made is left out, with the reason."""
    figures = Figures()
    vocabulary = encoder.vocabulary()
    if vocabulary is not None:
        figures.noun = "words"
        _try(figures, "map", lambda: _add_word_map(figures, *vocabulary, spec))
        _try(figures, "neighbors", lambda: _add_word_neighbors(figures, vocabulary[0], checkpoint, spec))
        return figures
    if not issubclass(load_modality(checkpoint.evaluated_as).source, IndexedSource):
        return figures
    try:
        samples = _open_samples(checkpoint, encoder, spec)
    except SslkitError as error:
        figures.missing.append(f"Samples, map and neighbors: {error}.")
        return figures
    figures.samples, figures.noun = len(samples.index), samples.source.noun
    _add_strip(figures, samples, spec)
    _try(figures, "map", lambda: _add_map(figures, checkpoint, samples, spec))
    _try(figures, "neighbors", lambda: _add_neighbors(figures, checkpoint, samples, spec))
    _try(figures, "confusion matrix", lambda: _add_confusion(figures, checkpoint, spec))
    return figures


def _try(figures: Figures, title: str, make: Callable[[], None]) -> None:
    try:
        make()
    except SslkitError as error:
        figures.missing.append(f"{title.capitalize()}: {error}.")


def _open_samples(checkpoint: Checkpoint, encoder: Encoder, spec: ReportSpec) -> _Samples:
    index = read_samples(spec, checkpoint)
    encoder.to(choose_device(spec.device)[0])
    source = source_of(checkpoint).for_evaluation(index, spec, encoder, checkpoint.size)
    return _Samples(index, encoder, source, load_modality(checkpoint.evaluated_as))


def _add_strip(figures: Figures, samples: _Samples, spec: ReportSpec) -> None:
    """Add pictures of a few samples."""
    order = np.random.default_rng(spec.seed).permutation(len(samples.index))[:_STRIP]
    pictures = [samples.modality.thumbnail(samples.source, int(row)) for row in order]
    figures.strip = [encode(picture, _STRIP_SIDE) for picture in pictures if picture is not None]


def _add_map(figures: Figures, checkpoint: Checkpoint, samples: _Samples, spec: ReportSpec) -> None:
    index = samples.index
    if len(index) < _LEAST:
        raise SslkitError(f"fewer than {_LEAST} samples")
    model = Model(str(checkpoint.path), samples.encoder, checkpoint.size)
    features = cached_features(model, samples.source, "last", "auto", spec)
    (vectors,) = features.layers.values()
    chosen = np.sort(np.random.default_rng(spec.seed).permutation(len(vectors))[: spec.samples])
    plane, method = project(vectors[torch.from_numpy(chosen)].numpy(), "tsne", spec.seed)
    figures.places_title = f"{len(chosen):,} {samples.source.noun}, {method}."
    rows = [int(row) for row in features.rows[chosen]]
    labels = [None if index.labels is None else label_text(index, row) for row in rows]
    names = [index.name(row) for row in rows]
    figures.places = [
        MapPoint(x, y, label, name) for (x, y), label, name in zip(_unit_square(plane), labels, names, strict=True)
    ]
    pictures = [samples.modality.thumbnail(samples.source, row) for row in rows]
    if any(picture is not None for picture in pictures):
        figures.tiles = tile_sheet(pictures, _MAP_SIDE)


def _add_word_map(figures: Figures, words: list[str], vectors: Tensor, spec: ReportSpec) -> None:
    most = min(spec.samples, len(words))
    if most < _LEAST:
        raise SslkitError(f"fewer than {_LEAST} words")
    plane, method = project(vectors[:most].cpu().numpy(), "tsne", spec.seed)
    figures.places_title = f"The {most:,} most frequent words, {method}."
    figures.places = [MapPoint(x, y, None, word) for (x, y), word in zip(_unit_square(plane), words[:most], strict=True)]


def _unit_square(plane: NDArray[np.float64]) -> list[tuple[float, float]]:
    """Return points `[N, 2]` moved and scaled so that both coordinates go from 0 to 1."""
    low, high = plane.min(axis=0), plane.max(axis=0)
    return [(float(x), float(y)) for x, y in (plane - low) / (high - low).clip(1e-9)]


def _add_neighbors(figures: Figures, checkpoint: Checkpoint, samples: _Samples, spec: ReportSpec) -> None:
    if len(samples.index) < 2:
        raise SslkitError("fewer than 2 samples")
    of_report = _search_spec(spec, checkpoint, k=min(_NEIGHBORS, len(samples.index) - 1))
    figures.neighbors = nearest_samples(of_report, checkpoint, samples.encoder)


def _add_word_neighbors(figures: Figures, words: list[str], checkpoint: Checkpoint, spec: ReportSpec) -> None:
    """Add the neighbors of words across the vocabulary: of the most frequent hundreds, not of the and of."""
    if len(words) < 2:
        raise SslkitError("fewer than 2 words")
    most = min(len(words), 600)
    queries = [words[place] for place in np.linspace(most // 10, most - 1, _WORDS, dtype=int)]
    k = min(_NEIGHBORS, len(words) - 1)
    figures.word_neighbors = search(_search_spec(spec, checkpoint, queries=queries, k=k)).neighbors


def _search_spec(spec: ReportSpec, checkpoint: Checkpoint, **changes: object) -> SearchSpec:
    values = {name: getattr(spec, name) for name in SearchSpec.model_fields if name in ReportSpec.model_fields}
    return SearchSpec.model_validate({**values, "ckpt": str(checkpoint.path), **changes})


def _add_confusion(figures: Figures, checkpoint: Checkpoint, spec: ReportSpec) -> None:
    """Count the predictions of each class on the test part: by the classifier of a fine-tuned checkpoint, else by k-NN."""
    values = {name: getattr(spec, name) for name in KnnSpec.model_fields if name in ReportSpec.model_fields}
    session = open_session(KnnSpec(**{**values, "ckpt": str(checkpoint.path), "baselines": False}))
    classes = list(session.classes)
    reader = session.reader(session.models[0], "last")
    train, (test, *_) = reader.training(), reader.tests()
    classifier = read_classifier(checkpoint) if has_classifier(checkpoint) else None
    if classifier is not None and classifier.classes == classes:
        with torch.no_grad():
            predicted = classifier.head(test.features).argmax(dim=1)
        classifier_name = "the classifier's"
    else:
        k = min(_KNN["k"], len(train.features))
        predicted = votes(train.features, train.labels, test.features, k, _KNN["temperature"], len(classes)).argmax(dim=1)
        classifier_name = f"{k}-NN's"
    counts = np.bincount((test.labels * len(classes) + predicted).numpy(), minlength=len(classes) ** 2)
    figures.confusion = counts.reshape(len(classes), len(classes)), classes
    answers = Answers(test.rows, (predicted == test.labels).float())
    figures.answers = labeled_fingerprint(session.parts.tests[0].index), answers
    figures.confusion_title = f"True class by row, {classifier_name} answer by column, {len(predicted):,} test samples."
