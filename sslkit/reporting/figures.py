"""What a report shows that has to be made of the images: a map, neighbors, a confusion matrix."""

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
from sslkit.evaluation.features import cached
from sslkit.evaluation.knn import votes
from sslkit.evaluation.models import Model
from sslkit.evaluation.neighbors import neighbors
from sslkit.evaluation.predict import classifier
from sslkit.evaluation.protocols import PROTOCOLS
from sslkit.evaluation.session import open_evaluation
from sslkit.evaluation.splits import source_of
from sslkit.evaluation.statistics import Told
from sslkit.registry import load_modality
from sslkit.reporting.projection import project
from sslkit.specs.evaluation import KnnSpec
from sslkit.specs.look import ReportSpec
from sslkit.specs.use import NeighborsSpec

_WIDTH, _HEIGHT, _MARGIN = 900, 640, 12  # of the map


_THUMBNAIL = 48


_KNN = PROTOCOLS["knn/weighted-v1"].settings  # of the votes behind the confusion matrix


@dataclass(frozen=True)
class MapPoint:
    """Hold where an image lies on the map, its label, and a small PNG of it."""

    x: float
    y: float
    label: str | None
    picture: bytes


@dataclass
class Figures:
    """Hold what could be made of a run's images, and why the rest could not."""

    places: list[MapPoint] = field(default_factory=list)
    places_title: str = ""
    neighbors: bytes | None = None
    confusion: tuple[NDArray[np.int64], list[str]] | None = None
    confusion_title: str = ""
    told: tuple[str, Told] | None = None  # hash of the test images and labels, and which of them were told right
    missing: list[str] = field(default_factory=list)


def make_figures(checkpoint: Checkpoint, spec: ReportSpec) -> Figures:
    """Return map, neighbors and confusion of a checkpoint; what cannot be made is left out and said why."""
    looks = Figures()
    for made, make in (("map", _place), ("neighbors", _near), ("confusion matrix", _confuse)):
        try:
            make(looks, checkpoint, spec)
        except SslkitError as error:
            looks.missing.append(f"No {made}: {error}.")
    return looks


def _place(looks: Figures, checkpoint: Checkpoint, spec: ReportSpec) -> None:
    index = read_samples(spec, checkpoint)
    if len(index) < 10:
        raise SslkitError("fewer than ten samples")
    encoder = checkpoint.build_encoder(spec.encoder).to(choose_device(spec.device)[0])
    samples = source_of(checkpoint).for_evaluation(index, spec, encoder, checkpoint.size)
    modality = load_modality(checkpoint.evaluated_as)
    found = cached(Model(str(checkpoint.path), encoder, checkpoint.size), samples, "last", "auto", spec)
    (features,) = found.layers.values()
    drawn = np.sort(np.random.default_rng(spec.seed).permutation(len(features))[: spec.samples])
    plane, looks.places_title = project(features[torch.from_numpy(drawn)].numpy(), "tsne", spec.seed)
    low, high = plane.min(axis=0), plane.max(axis=0)
    room = np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN
    for (x, y), row in zip(_MARGIN + (plane - low) / (high - low).clip(1e-9) * room, found.rows[drawn], strict=True):
        label = None if index.labels is None else label_text(index, int(row))
        looks.places.append(MapPoint(float(x), float(y), label, _thumbnail(modality.thumbnail(samples, int(row)))))


def _near(looks: Figures, checkpoint: Checkpoint, spec: ReportSpec) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "neighbors.png")
        given = {name: getattr(spec, name) for name in NeighborsSpec.model_fields if name in ReportSpec.model_fields}
        k = min(8, len(read_samples(spec, checkpoint)) - 1)
        neighbors(NeighborsSpec(**{**given, "ckpt": str(checkpoint.path), "out": str(out), "k": k}))
        looks.neighbors = out.read_bytes()


def _confuse(looks: Figures, checkpoint: Checkpoint, spec: ReportSpec) -> None:
    """Count which class is told for which on the test part: by the classifier of a fine-tuned checkpoint, else by k-NN."""
    given = {
        name: getattr(spec, name)
        for name in KnnSpec.model_fields
        if name in ReportSpec.model_fields and name not in spec.tables()
    }
    evaluation = open_evaluation(KnnSpec(**{**given, "ckpt": str(checkpoint.path), "baselines": False}))
    classes = list(evaluation.parts.classes)
    train, (test, *_) = evaluation.features(evaluation.models[0], "last")
    (bank,), (shown,) = train.layers.values(), test.layers.values()
    if checkpoint.part("head") and checkpoint.metadata.get("classes") == classes:
        with torch.no_grad():
            told = classifier(checkpoint)[1](shown).argmax(dim=1)
        by = "the classifier's"
    else:
        k = min(_KNN["k"], len(bank))
        told = votes(bank, train.labels, shown, k, _KNN["temperature"], len(classes)).argmax(dim=1)
        by = f"{k}-NN's"
    counts = np.bincount((test.labels * len(classes) + told).numpy(), minlength=len(classes) ** 2)
    looks.confusion = counts.reshape(len(classes), len(classes)), classes
    looks.told = evaluation.parts.hashes()["test"][0], (test.rows, (told == test.labels).float())
    looks.confusion_title = f"True class by row, {by} answer by column, {len(told):,} test images."


def _thumbnail(image: Image.Image | None) -> bytes:
    """Return a small PNG of a picture; a black one in the place of what can't be read."""
    image = image or Image.new("L", (_THUMBNAIL, _THUMBNAIL))
    if image.width > _THUMBNAIL:
        image = image.resize((_THUMBNAIL, _THUMBNAIL), Image.Resampling.LANCZOS)
    with io.BytesIO() as stream:
        image.save(stream, format="PNG")
        return stream.getvalue()
