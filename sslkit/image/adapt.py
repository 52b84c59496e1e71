"""`sslkit adapt`: classifiers that adapt to corrupted test images without labels."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Comparison, Data, Metric, Result, Role, Row, TestData
from sslkit.data.index import Index
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.classifier import read_classifier
from sslkit.engine.kept_parts import kept_tasks, read_pretext_task
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.splits import evaluation_size, find_labeled, labeled_fingerprint
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, interval_of_mean
from sslkit.files import output_path, write_atomically
from sslkit.image.adaptation import (
    ImageClassifier,
    TestTimeTraining,
    as_float,
    check_task,
    predict_by_batch,
    predict_by_tent,
    predict_plainly,
)
from sslkit.image.corruption import CORRUPTIONS, choose_corruptions, corrupt
from sslkit.image.source import ImageSource
from sslkit.image.specs import AdaptSpec
from sslkit.tasks.load import load_task

_SHARED = {"corruption": list(CORRUPTIONS), "severity": 5, "lr": 1e-3, "copies": 8, "batchnorm": "eval"}
_CLEAN = "clean"
_NONE, _BATCH, _TENT, _TTT = "no adaptation", "batch statistics", "TENT", "test-time training"
_PART = 64  # images corrupted at once
_COLLAPSED = 0.9  # share of one class among predictions
_WIDTH, _HEIGHT, _TITLE = 110, 18, 120

Method = Callable[[Tensor, list[int]], Tensor]  # canvases uint8 [N, C, side, side] and their rows -> classes [N]


class Adapt(Evaluation):
    """Classify corrupted images by a classifier that adapts to them: batch statistics, TENT, test-time training."""

    verb = "adapt"
    Options = AdaptSpec
    modalities = ("image",)
    in_all = False
    protocols = (
        Protocol(
            "adapt/online-v1",
            "images of each corruption come in an order, and what they taught is kept: batch statistics, TENT (Wang et al., "
            "2021), one step of test-time training each (Sun et al., 2020); mean over corruptions and orders",
            {**_SHARED, "samples": 500, "orders": 3, "batch_size": 200, "tent_lr": 1e-3, "steps": 1},
        ),
        Protocol(
            "adapt/standard-v1",
            "ten steps of test-time training for each image by itself (Sun et al., 2020); mean over corruptions",
            {**_SHARED, "samples": 200, "orders": 1, "steps": 10},
        ),
    )

    def run(self, spec: AdaptSpec) -> Result:
        """Measure a checkpoint with a classifier as it is, and adapted by each method that it allows.

        Raises SslkitError for checkpoints without a classifier, and for test classes that it does not know.
        """
        started_at = time.monotonic()
        protocol = self.find_protocol(spec.protocol)
        foreign = sorted({"tent_lr", "batch_size"} & spec.model_fields_set - protocol.settings.keys())
        if foreign:
            raise SslkitError(f"{protocol.id} has no such setting", "use --protocol adapt/online-v1", flag=foreign[0])
        spec = spec.model_copy(
            update={
                "corruption": choose_corruptions(spec.corruption),
                **{name: protocol.settings[name] for name in ("samples", "orders", "steps") if getattr(spec, name) is None},
            }
        )
        picture = None if spec.out is None else output_path(spec.out, ".png")
        checkpoint, device = read_model(spec.ckpt), choose_device(spec.device)[0]
        linear, encoder = read_classifier(checkpoint), checkpoint.build_encoder(spec.encoder)
        test = _Test.read(spec, checkpoint, encoder, linear.classes)
        classifier = ImageClassifier(encoder, linear.head, test.source).to(device).eval()
        methods, notes = _methods(spec, checkpoint, test, classifier)
        assert spec.orders is not None
        rows = list[Row]()
        plain: Answers | None = None
        with show_progress("adapting", len(methods) * spec.orders * (1 + len(spec.corruption)) * len(test.rows)) as progress:
            by_method = {name: dict[str, NDArray[np.float64]]() for name in methods}  # correct [orders, N] by corruption
            for corruption in (_CLEAN, *spec.corruption):
                canvases = test.corrupted(corruption, spec, device)
                for name, method in methods.items():
                    correct, collapsed = _measure(method, canvases, test, spec, progress.advance)
                    by_method[name][corruption] = correct
                    if collapsed:
                        notes.append(f"{name} on {corruption}: {collapsed:.0%} of the predictions are one class.")
        weights = weights_hash(classifier.encoder)
        for name, correct_by_corruption in by_method.items():
            row, answers = _row(name, correct_by_corruption, test, plain)
            plain = plain or answers
            rows.append(replace(row, weights=weights))
        settings = {name: getattr(spec, name) for name in protocol.settings}
        data = Data(tests=[TestData(test.name, labeled_fingerprint(test.index), len(test.rows))])
        result = Result(
            verb=self.verb,
            protocol=protocol.id if settings == protocol.settings and not spec.sample_values() else None,
            settings={**settings, "seed": spec.seed, "encoder": checkpoint.recipe},
            checkpoint=str(checkpoint.path),
            weights=weights,
            data=data,
            rows=adjust_comparisons(rows),
            notes=[f"{len(test.rows):,} test images of {test.name}, severity {spec.severity}.", *notes],
            seconds=round(time.monotonic() - started_at, 1),
        )
        append_result(checkpoint.path.parent, result.to_json())
        if picture is not None:
            _draw(picture, rows)
        return result


def adapt(spec: AdaptSpec) -> Result:
    """Classify corrupted images by a classifier that adapts to them, as `sslkit adapt` does."""
    return Adapt().run(spec)


@dataclass(frozen=True)
class _Test:
    """The test images: all rows of the index are used."""

    name: str
    index: Index
    rows: NDArray[np.int64]  # in the test part
    labels: NDArray[np.int64]  # in the classifier's classes
    source: ImageSource
    canvases: Tensor  # uint8 [N, C, side, side]

    @classmethod
    def read(cls, spec: AdaptSpec, checkpoint: Checkpoint, encoder: Encoder, classes: list[str]) -> "_Test":
        """Read test images, at most as many as were asked for."""
        parts = find_labeled(spec, [] if spec.test is None else [spec.test], checkpoint)
        part = parts.tests[0]
        unknown = [name for name in parts.classes if name not in classes]
        if unknown:
            problem = f"{part.name} has classes that the classifier does not know: {', '.join(unknown[:5])}"
            raise SslkitError(problem, "name data of the same classes", flag="data")
        assert part.index.labels is not None and spec.samples is not None
        rows = np.sort(np.random.default_rng(spec.seed).permutation(len(part.index))[: spec.samples])
        index = part.index.subset(rows)
        source = ImageSource.for_evaluation(index, spec, encoder, evaluation_size(spec, checkpoint))
        arrays, broken = source.read(np.arange(len(index)))
        if broken:
            raise SslkitError(f"{index.name(min(broken))} of {part.name} can't be read", "remove it, or mend it", flag="data")
        canvases = source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()})["canvas"]
        labels = np.array([classes.index(name) for name in parts.classes])[part.index.labels[rows]]
        return cls(part.name, index, rows, labels, source, (255 * canvases).round().byte())

    def corrupted(self, name: str, spec: AdaptSpec, device: torch.device) -> Tensor:
        """Return the canvases under a corruption, as bytes on the device."""
        if name == _CLEAN:
            return self.canvases.to(device)
        parts = []
        for start in range(0, len(self.rows), _PART):
            canvases = as_float(self.canvases[start : start + _PART].to(device))
            changed = corrupt(canvases, name, spec.severity, self.rows[start : start + _PART].tolist(), spec.seed)
            parts.append((255 * changed).round().byte())
        return torch.cat(parts)


def _methods(
    spec: AdaptSpec, checkpoint: Checkpoint, test: _Test, classifier: ImageClassifier
) -> tuple[dict[str, Method], list[str]]:
    """Return the methods that a classifier allows, and why others are not possible."""
    methods: dict[str, Method] = {_NONE: lambda canvases, _: predict_plainly(classifier, canvases, spec.batch_size)}
    notes, online = list[str](), spec.protocol == "adapt/online-v1"
    if online and classifier.has_batch_norm:
        methods[_BATCH] = lambda canvases, _: predict_by_batch(classifier, canvases, spec.batch_size)
    elif online:
        notes.append(f"{_BATCH.capitalize()}: not possible, the encoder has no BatchNorm.")
    if online and classifier.norm_parameters():
        methods[_TENT] = lambda canvases, _: predict_by_tent(classifier, canvases, spec.batch_size, spec.tent_lr)
    elif online:
        notes.append(f"{_TENT}: not possible, the encoder has no normalization layers with weights.")
    names = [name for name in kept_tasks(checkpoint) if "label" not in load_task(name).needs]
    if spec.pretext is not None and spec.pretext not in names:
        raise SslkitError(
            f"{checkpoint.path} keeps no {spec.pretext}", f"it keeps {', '.join(names) or 'none'}", flag="pretext"
        )
    name = spec.pretext or (names[0] if len(names) == 1 else None)
    if name is None and len(names) > 1:
        raise SslkitError(f"{checkpoint.path} keeps several tasks", f"name one of {', '.join(names)}", flag="pretext")
    if name is None:
        hint = "pretrain TASK+supervised with --keep-parts head"
        if not online:
            raise SslkitError(f"{checkpoint.path} keeps no pretext task", hint, flag="ckpt")
        notes.append(f"{_TTT.capitalize()}: not possible, the checkpoint keeps no pretext task ({hint}).")
        return methods, notes
    encoder = classifier.encoder
    task = read_pretext_task(checkpoint, encoder, name, len(test.rows)).to(encoder.device)
    check_task(task, name)
    assert spec.steps is not None
    trains = spec.batchnorm == "train"
    training = TestTimeTraining(classifier, task, spec.steps, spec.lr, spec.copies, not online, trains, spec.seed)
    methods[_TTT] = lambda canvases, rows: torch.tensor(list(training.predict(canvases, rows)))
    if online:
        notes.append("Online, each answer depends on the images before it; intervals and p-values take images as independent.")
    return methods, notes


def _measure(
    method: Method, canvases: Tensor, test: _Test, spec: AdaptSpec, advance: Callable[[int], None]
) -> tuple[NDArray[np.float64], float]:
    """Return whether each image is right in each order, `[orders, N]`, and the share of the first class if it is too large."""
    assert spec.orders is not None
    correct, largest = np.zeros((spec.orders, len(test.rows))), 0.0
    for number in range(spec.orders):
        order = np.random.default_rng([spec.seed, number]).permutation(len(test.rows))
        predicted = method(canvases[torch.from_numpy(order).to(canvases.device)], test.rows[order].tolist()).numpy()
        correct[number, order] = predicted == test.labels[order]
        largest = max(largest, float(np.bincount(predicted).max() / len(predicted)))
        advance(len(order))
    return correct, largest if largest > _COLLAPSED else 0.0


def _row(name: str, correct: dict[str, NDArray[np.float64]], test: _Test, plain: Answers | None) -> tuple[Row, Answers]:
    """Return the row of one method, and its answers: the mean over corruptions and orders of each image."""
    changed = np.stack([values for corruption, values in correct.items() if corruption != _CLEAN])  # [corruptions, orders, N]
    means = torch.from_numpy(changed.mean(axis=(0, 1)))
    low, high, method = interval_of_mean(means)
    by_order = changed.mean(axis=(0, 2))
    deviation = float(by_order.std(ddof=1)) if len(by_order) > 1 else None
    count = len(test.rows)
    metrics = [
        Metric("corrupted", float(means.mean()), low, high, method, deviation, len(by_order), count, "images"),
        Metric("clean", float(correct[_CLEAN].mean()), n=count, unit_of_n="images"),
    ]
    answers = Answers(test.rows, means)
    comparisons = dict[str, Comparison]() if plain is None else {_NONE: compare_answers(answers, plain)}
    by_class: dict[str, float | None] = {corruption: float(values.mean()) for corruption, values in correct.items()}
    if plain is not None:
        metrics.append(Metric("change", float((means - plain.correct).mean()), n=count, unit_of_n="images"))
    role: Role = "checkpoint" if plain is None else "other"
    return Row(name, metrics, test.name, by_class=by_class, comparisons=comparisons, role=role), answers


def _draw(path: Path, rows: list[Row]) -> None:
    """Write a table as a picture: accuracy by corruption and method, green where it rises and red where it falls."""
    names = list(rows[0].by_class)
    sheet = Image.new("RGB", (_TITLE + _WIDTH * len(rows), _HEIGHT * (1 + len(names))), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for column, row in enumerate(rows):
        left = _TITLE + column * _WIDTH
        pen.text((left + 4, 3), row.model, fill="black", font=font)
        for line, name in enumerate(names, start=1):
            value, before = row.by_class[name], rows[0].by_class[name]
            assert value is not None and before is not None
            strength = min(1.0, abs(value - before) / 0.2)
            pale, full = round(255 - 15 * strength), round(255 - 130 * strength)
            color = (full, pale, full) if value > before else (pale, full, full)
            pen.rectangle((left, line * _HEIGHT, left + _WIDTH - 2, (line + 1) * _HEIGHT - 2), fill=color)
            change = "" if row is rows[0] else f" ({100 * (value - before):+.1f})"
            pen.text((left + 4, line * _HEIGHT + 2), f"{value:.1%}{change}", fill="black", font=font)
    for line, name in enumerate(names, start=1):
        pen.text((4, line * _HEIGHT + 2), name.replace("_", " "), fill="black", font=font)
    with write_atomically(path) as stream:
        sheet.save(stream, format="PNG")
