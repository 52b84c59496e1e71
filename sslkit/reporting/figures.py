"""The figures of a report that need the samples: a map, neighbors, a confusion matrix."""

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.precision import choose_device
from sslkit.evaluation.embed import label_text, read_samples
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.knn import Knn, votes
from sslkit.evaluation.models import Model
from sslkit.evaluation.neighbors import neighbors
from sslkit.evaluation.predict import classifier
from sslkit.evaluation.session import open_session
from sslkit.evaluation.splits import labeled_fingerprint, source_of
from sslkit.evaluation.statistics import Answers
from sslkit.registry import load_modality
from sslkit.reporting.projection import project
from sslkit.specs.evaluation import KnnSpec
from sslkit.specs.look import ReportSpec
from sslkit.specs.use import NeighborsSpec

_WIDTH, _HEIGHT, _MARGIN = 900, 640, 12  # of the map


_THUMBNAIL = 48


_KNN = Knn.protocols[0].settings  # of the votes behind the confusion matrix


@dataclass(frozen=True)
class MapPoint:
    """Position of a sample on the map, its label, and a small PNG of it."""

    x: float
    y: float
    label: str | None
    picture: bytes


@dataclass
class Figures:
    """The figures of a run, and why others are missing."""

    places: list[MapPoint] = field(default_factory=list)
    places_title: str = ""
    neighbors: bytes | None = None
    confusion: tuple[NDArray[np.int64], list[str]] | None = None
    confusion_title: str = ""
    answers: tuple[str, Answers] | None = None  # fingerprint of the test data, and which samples were classified correctly
    missing: list[str] = field(default_factory=list)


def make_figures(checkpoint: Checkpoint, spec: ReportSpec) -> Figures:
    """Return map, neighbors and confusion matrix of a checkpoint; a figure that cannot be made is left out, with the reason."""
    figures = Figures()
    for title, make in (("map", _add_map), ("neighbors", _add_neighbors), ("confusion matrix", _add_confusion)):
        try:
            make(figures, checkpoint, spec)
        except SslkitError as error:
            figures.missing.append(f"No {title}: {error}.")
    return figures


def _add_map(figures: Figures, checkpoint: Checkpoint, spec: ReportSpec) -> None:
    index = read_samples(spec, checkpoint)
    if len(index) < 10:
        raise SslkitError("fewer than ten samples")
    encoder = checkpoint.build_encoder(spec.encoder).to(choose_device(spec.device)[0])
    samples = source_of(checkpoint).for_evaluation(index, spec, encoder, checkpoint.size)
    modality = load_modality(checkpoint.evaluated_as)
    features = cached_features(Model(str(checkpoint.path), encoder, checkpoint.size), samples, "last", "auto", spec)
    (vectors,) = features.layers.values()
    chosen = np.sort(np.random.default_rng(spec.seed).permutation(len(vectors))[: spec.samples])
    plane, figures.places_title = project(vectors[torch.from_numpy(chosen)].numpy(), "tsne", spec.seed)
    low, high = plane.min(axis=0), plane.max(axis=0)
    inner = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    for (x, y), row in zip(_MARGIN + (plane - low) / (high - low).clip(1e-9) * inner, features.rows[chosen], strict=True):
        label = None if index.labels is None else label_text(index, int(row))
        figures.places.append(MapPoint(float(x), float(y), label, _thumbnail(modality.thumbnail(samples, int(row)))))


def _add_neighbors(figures: Figures, checkpoint: Checkpoint, spec: ReportSpec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "neighbors.png")
        values = {name: getattr(spec, name) for name in NeighborsSpec.model_fields if name in ReportSpec.model_fields}
        k = min(8, len(read_samples(spec, checkpoint)) - 1)
        result = neighbors(NeighborsSpec(**{**values, "ckpt": str(checkpoint.path), "out": str(out), "k": k}))
        if result.picture is not None:
            figures.neighbors = out.read_bytes()


def _add_confusion(figures: Figures, checkpoint: Checkpoint, spec: ReportSpec) -> None:
    """Count the predictions of each class on the test part: by the classifier of a fine-tuned checkpoint, else by k-NN."""
    values = {name: getattr(spec, name) for name in KnnSpec.model_fields if name in ReportSpec.model_fields}
    session = open_session(KnnSpec(**{**values, "ckpt": str(checkpoint.path), "baselines": False}))
    classes = list(session.classes)
    reader = session.reader(session.models[0], "last")
    train, (test, *_) = reader.training(), reader.tests()
    if checkpoint.part("head") and checkpoint.metadata.get("classes") == classes:
        with torch.no_grad():
            predicted = classifier(checkpoint)[1](test.features).argmax(dim=1)
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


def _thumbnail(image: Image.Image | None) -> bytes:
    """Return a small PNG of a picture; a black one if it can't be read."""
    image = image or Image.new("L", (_THUMBNAIL, _THUMBNAIL))
    if image.width > _THUMBNAIL:
        image = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    with io.BytesIO() as stream:
        image.save(stream, format="PNG")
        return stream.getvalue()
