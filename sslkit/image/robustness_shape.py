"""Whether shape or texture decides where they conflict: two protocols of `sslkit robustness`."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.result import Comparison, Metric, Row, TestData
from sslkit.data.index import Index
from sslkit.engine.precision import Machine
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.models import Model
from sslkit.evaluation.session import EvaluationSession
from sslkit.evaluation.splits import labeled_fingerprint, map_classes
from sslkit.evaluation.statistics import Answers, compare_answers, interval_of_mean
from sslkit.files import write_atomically
from sslkit.image.corruption.filters import blur
from sslkit.image.frozen_classifiers import (
    Classifier,
    Table,
    check_readable,
    choose_images,
    fit_classifiers,
    predict_changed,
    with_places,
)
from sslkit.image.source import ImageSource
from sslkit.image.specs import RobustnessSpec
from sslkit.pictures import as_tile

SHAPE_BIAS = "shape bias"
_GRID = 4  # parts of a side that are shuffled, so that no shape of the texture's image is left
_HALF = 0.1874  # Gaussians of this many sides per cycle keep half of a frequency
_UNDECIDED = "No row of {}: it classifies no picture as one of its two classes."
_EXAMPLES, _TILE, _GAP, _TEXT = 6, 128, 8, 16


def low_pass(images: Tensor, cutoff: float) -> Tensor:
    """Return images `[B, C, S, S]` without detail: half of what has `cutoff` cycles per side is left."""
    return blur(images, _HALF * images.shape[-1] / cutoff)


def shuffle_parts(images: Tensor, orders: Tensor) -> Tensor:
    """Return images `[B, C, S, S]` whose 4 x 4 parts are in other orders, `[B, 16]`: texture without shape.

    Pixels beyond a multiple of four stay.
    """
    side = images.shape[-1] // _GRID * _GRID
    part = side // _GRID
    whole = images[..., :side, :side]
    parts = whole.unfold(2, part, part).unfold(3, part, part).flatten(2, 3)  # [B, C, 16, part, part]
    chosen = parts.gather(2, orders[:, None, :, None, None].expand_as(parts))
    rows = chosen.unflatten(2, (_GRID, _GRID)).transpose(3, 4).reshape(*images.shape[:2], side, side)
    shuffled = images.clone()
    shuffled[..., :side, :side] = rows
    return shuffled


def texture_of(images: Tensor, orders: Tensor, cutoff: float) -> Tensor:
    """Return what `low_pass` takes from images, in shuffled parts, `[B, C, S, S]` around 0."""
    return shuffle_parts(images - low_pass(images, cutoff), orders)


def measure_shape(session: EvaluationSession, spec: RobustnessSpec, machine: Machine, picture: Path | None) -> Table:
    """Return rows for pictures made of test images, each with the fine texture of one of another class.

    Beside the conflict stands how well each cue is classified alone.
    """
    table, outcomes = Table(), CheckpointOutcomes[Answers](_compare)
    classifiers = fit_classifiers(session, spec)
    for number, (part, test) in enumerate(zip(session.parts.tests, classifiers[0].reader.tests(), strict=True)):
        rows, hashes = choose_images(test, spec)
        index = part.index.subset(rows)
        assert index.labels is not None
        partners, orders = _choose_partners(index.labels, spec.seed)
        cues = _Cues(classifiers, index, partners, orders, spec.cutoff)
        predicted = predict_changed(classifiers, index, [cues.conflict, cues.shape, cues.texture], machine, "conflicting cues")
        conflict, shape, texture = predicted
        labels = index.labels, index.labels[partners]
        table.tests.append(classifiers[0].describe(part, hashes))
        for classifier, place in with_places(classifiers):
            decisions = _decisions(classifier.model, conflict[place], *labels)
            alone = [_share("shape alone", shape[place] == labels[0]), _share("texture alone", texture[place] == labels[1])]
            if decisions is None:
                table.notes.append(_UNDECIDED.format(classifier.model.name))
                continue
            metrics, answers = [*decisions[0], *alone], decisions[1]
            comparisons = outcomes.compare(classifier.model.role, number, None, answers)
            row = Row(classifier.model.name, metrics, part.name, layer=spec.layer, comparisons=comparisons)
            table.rows.append(classifier.complete(row))
        if picture is not None and not number:
            _draw(picture, classifiers[0], index, partners, cues, conflict[0], session.classes)
    table.notes.append(
        f"Shape: what has less than {spec.cutoff:g} cycles per image; texture: what has more in another image, cut into 4 x 4 "
        "parts in a random order. Shape bias is over the pictures that are classified as one of the two."
    )
    return table


def measure_conflicts(session: EvaluationSession, spec: RobustnessSpec, machine: Machine) -> Table:
    """Return a row for each model on the pictures of a table, whose classes training has."""
    assert spec.conflicts is not None
    with renamed_flags({"data": "conflicts", "test": "conflicts", "label": "conflicts"}):
        shape, texture = (_read(session, spec, spec.conflicts, column) for column in ("shape", "texture"))
    assert shape.labels is not None and texture.labels is not None
    rows = np.flatnonzero(shape.labels != texture.labels)
    if not len(rows):
        raise SslkitError(f"{spec.conflicts} has no picture with two classes", flag="conflicts")
    shapes, textures = shape.labels[rows], texture.labels[rows]
    classifiers = fit_classifiers(session, spec)
    check_readable(classifiers[0].source(shape.subset(rows)), "conflicts")
    (predicted,) = predict_changed(classifiers, shape.subset(rows), [lambda images, _: images], machine, "conflicting cues")
    table, outcomes = Table(), CheckpointOutcomes[Answers](_compare)
    table.tests.append(TestData(spec.conflicts, labeled_fingerprint(shape), len(rows)))
    for classifier, place in with_places(classifiers):
        decisions = _decisions(classifier.model, predicted[place], shapes, textures)
        if decisions is None:
            table.notes.append(_UNDECIDED.format(classifier.model.name))
            continue
        metrics, answers = decisions
        comparisons = outcomes.compare(classifier.model.role, 0, None, answers)
        row = Row(classifier.model.name, metrics, spec.conflicts, layer=spec.layer, comparisons=comparisons)
        table.rows.append(classifier.complete(row))
    if len(rows) < len(shape):
        table.notes.append(f"{len(shape) - len(rows):,} pictures with shape and texture of one class are left out.")
    return table


class _Cues:
    """Pictures made of test images `index`: shape of each, texture of its partner, both or one alone."""

    def __init__(
        self, classifiers: Sequence[Classifier], index: Index, partners: NDArray[np.int64], orders: Tensor, cutoff: float
    ) -> None:
        self.partners, self.orders, self.cutoff, self.index = partners, orders, cutoff, index
        self.by_size = {classifier.model.size: classifier for classifier in classifiers}

    def conflict(self, images: Tensor, rows: list[int]) -> Tensor:
        """Return what is coarse in images and fine in their partners, in [0, 1] (hybrid images; Oliva et al., 2006)."""
        others = self._partners_of(images, rows)
        return (low_pass(images, self.cutoff) + self._texture(others, rows)).clamp(0, 1)

    def shape(self, images: Tensor, rows: list[int]) -> Tensor:
        """Return what is coarse in images."""
        return low_pass(images, self.cutoff)

    def texture(self, images: Tensor, rows: list[int]) -> Tensor:
        """Return what is fine in their partners, on these' mean color."""
        others = self._partners_of(images, rows)
        return (others.mean(dim=(2, 3), keepdim=True) + self._texture(others, rows)).clamp(0, 1)

    def _partners_of(self, images: Tensor, rows: list[int]) -> Tensor:
        others = self.by_size[images.shape[-1]].images(self.index.subset(self.partners[rows]))
        return others.to(images)

    def _texture(self, others: Tensor, rows: list[int]) -> Tensor:
        return texture_of(others, self.orders[rows].to(others.device), self.cutoff)


def _compare(first: Answers, second: Answers) -> Comparison | None:
    """Return the difference over the pictures that both classify as one of their two classes, None if there are none."""
    shared = np.intersect1d(first.rows, second.rows, assume_unique=True)
    return compare_answers(first, second) if len(shared) else None


def _choose_partners(labels: NDArray[np.int64], seed: int) -> tuple[NDArray[np.int64], Tensor]:
    """Return for each image one of another class, `[N]`, and an order of its parts, `[N, 16]`, by the seed."""
    random = np.random.default_rng(seed)
    others = {label: np.flatnonzero(labels != label) for label in np.unique(labels)}
    if len(others) < 2:
        raise SslkitError(f"{len(labels)} test images are all of one class", "use more, of several", flag="samples")
    partners = np.array([random.choice(others[label]) for label in labels])
    orders = np.stack([random.permutation(_GRID**2) for _ in labels])
    return partners, torch.from_numpy(orders)


def _decisions(
    model: Model, predicted: NDArray[np.int64], shapes: NDArray[np.int64], textures: NDArray[np.int64]
) -> tuple[list[Metric], Answers] | None:
    """Return how often shape decides, among the pictures classified as one of their two classes, and how many these are.

    None if there are no such pictures; of the checkpoint, that is an SslkitError.
    """
    by_shape, decided = predicted == shapes, (predicted == shapes) | (predicted == textures)
    if decided.any():
        answers = Answers(np.flatnonzero(decided), torch.from_numpy(by_shape[decided]).double())
        return [_share(SHAPE_BIAS, by_shape[decided]), _share("shape or texture", decided)], answers
    if model.role == "checkpoint":
        problem = f"the checkpoint classifies none of {len(decided):,} pictures as one of its two classes"
        raise SslkitError(problem, "more pictures are needed, or better features", flag="ckpt")
    return None


def _share(name: str, values: NDArray[np.bool_]) -> Metric:
    low, high, method = interval_of_mean(torch.from_numpy(values).double())
    return Metric(name, float(values.mean()), low, high, method, n=len(values), unit_of_n="images")


def _read(session: EvaluationSession, spec: RobustnessSpec, table: str, column: str) -> Index:
    """Return the pictures of a table, labeled by a column whose classes training has."""
    recorded = spec.with_recorded(session.checkpoint.metadata.get("spec"), same_data=False)
    index = ImageSource.read_index(table, recorded.model_copy(update={"label": column, "label_pattern": None}))
    if index.labels is None or index.labels.ndim != 1 or (index.labels < 0).any():
        raise SslkitError(f"{table} has pictures without a {column}, or with several", "each has one class", flag="data")
    return map_classes(index, session.parts.train)


def _draw(
    path: Path,
    classifier: Classifier,
    index: Index,
    partners: NDArray[np.int64],
    cues: _Cues,
    predicted: NDArray[np.int64],
    classes: tuple[str, ...],
) -> None:
    """Write a picture of some images, of their partners, of what is made of both, and of what the checkpoint says."""
    assert index.labels is not None
    rows = np.linspace(0, len(index) - 1, min(_EXAMPLES, len(index))).astype(int)
    images, others = (classifier.images(index.subset(chosen)) for chosen in (rows, partners[rows]))
    lines = [images, others, cues.conflict(images, rows.tolist())]
    labels = [index.labels[rows], index.labels[partners[rows]], predicted[rows]]
    width = len(rows) * (_TILE + _GAP) + _GAP
    sheet = Image.new("RGB", (width, len(lines) * (_TILE + _TEXT + _GAP) + _GAP), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    titles = ("shape: ", "texture: ", "classified: ")
    for line, (pictures, names, title) in enumerate(zip(lines, labels, titles, strict=True)):
        for column, (picture, label) in enumerate(zip(pictures, names, strict=True)):
            left, top = _GAP + column * (_TILE + _GAP), _GAP + line * (_TILE + _TEXT + _GAP)
            sheet.paste(as_tile(picture, _TILE), (left, top))
            pen.text((left, top + _TILE), f"{title}{classes[label]}"[:24], fill="black", font=font)
    with write_atomically(path) as stream:
        sheet.save(stream, format="PNG")
