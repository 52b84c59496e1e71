"""Accuracy on corrupted images: one protocol of `sslkit robustness`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sslkit.contract.result import Metric, Row
from sslkit.engine.precision import Machine
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.effective_robustness import FEWEST, NAME, SPREAD, ShiftAnswers
from sslkit.evaluation.session import EvaluationSession
from sslkit.evaluation.statistics import Answers, compare_answers, interval_of_mean
from sslkit.files import write_atomically
from sslkit.image.corruption import FAMILIES, choose_corruptions, corrupt
from sslkit.image.frozen_classifiers import (
    Change,
    Classifier,
    Table,
    choose_images,
    fit_classifiers,
    predict_changed,
    with_places,
)
from sslkit.image.specs import RobustnessSpec
from sslkit.pictures import as_tile

_TILE, _GAP, _TEXT = 96, 6, 15

Condition = tuple[str, int]  # corruption and severity


def measure_corruptions(session: EvaluationSession, spec: RobustnessSpec, machine: Machine, picture: Path | None) -> Table:
    """Return a row for each model and test part: mean accuracy on corrupted images, on clean ones, and by corruption."""
    names, severities = choose_corruptions(spec.corruption), sorted(set(spec.severity))
    conditions = [(name, severity) for name in names for severity in severities]
    classifiers = fit_classifiers(session, spec)
    table, outcomes = Table(), CheckpointOutcomes[Answers](compare_answers)
    for number, (part, test) in enumerate(zip(session.parts.tests, classifiers[0].reader.tests(), strict=True)):
        rows, hashes = choose_images(test, spec)
        index = part.index.subset(rows)
        table.tests.append(classifiers[0].describe(part, hashes))
        changes: list[Change] = [_keep, *(partial(_corrupt, name, severity, rows, spec.seed) for name, severity in conditions)]
        predicted = predict_changed(classifiers, index, changes, machine, "corrupted images")
        assert index.labels is not None
        correct = (predicted == index.labels).astype(np.float64)  # [1 + conditions, P, N]
        robustness = ShiftAnswers(correct[0], correct[1:].mean(axis=0), paired=True).metric()
        for classifier, place in with_places(classifiers):
            of_model, model = correct[:, place], classifier.model
            mean = torch.from_numpy(of_model[1:].mean(axis=0))
            metrics = _metrics(of_model, conditions)
            if model.role == "checkpoint" and robustness is not None:
                metrics.append(robustness)
            by_corruption = {name: _accuracy(of_model, conditions, [name]) for name in names}
            comparisons = outcomes.compare(model.role, number, None, Answers(rows, mean))
            row = Row(model.name, metrics, part.name, layer=spec.layer, by_class=dict(by_corruption), comparisons=comparisons)
            table.rows.append(classifier.complete(row))
        if not number:
            table.notes += [_worst(correct[:, 0], conditions, names), note_on_line(robustness, classifiers)]
            if picture is not None:
                _draw(picture, session, classifiers[0], number, rows[:1], conditions, correct[:, 0], spec.seed)
    return table


def note_on_line(robustness: Metric | None, classifiers: Sequence[Classifier]) -> str:
    """Return what effective robustness was measured against, or why it was not."""
    points = sum(len(classifier.predictors) for classifier in classifiers[1:])
    if robustness is None:
        need = f"it needs {FEWEST} baselines whose accuracies differ by {100 * SPREAD:.0f} points"
        return f"No {NAME}: {need}; --against adds models."
    every = sorted({share for classifier in classifiers[1:] for share in classifier.shares}, reverse=True)
    shares = ", ".join(f"{100 * share:g}%" for share in every)
    return (
        f"{NAME.capitalize()}: accuracy beyond a line through {points} baselines (random weights and raw pixels fitted on "
        f"{shares} of the labels, and models of --against)."
    )


def _keep(images: Tensor, rows: list[int]) -> Tensor:
    return images


def _corrupt(name: str, severity: int, samples: NDArray[np.int64], seed: int, images: Tensor, rows: list[int]) -> Tensor:
    """Corrupt images whose rows count in the chosen `samples` of the test part."""
    return corrupt(images, name, severity, samples[rows].tolist(), seed)


def _metrics(correct: NDArray[np.float64], conditions: list[Condition]) -> list[Metric]:
    """Return accuracies of one model, from `[1 + conditions, N]`, clean images first."""
    count, mean = correct.shape[1], torch.from_numpy(correct[1:].mean(axis=0))
    low, high, method = interval_of_mean(mean)
    metrics = [Metric("corrupted", float(mean.mean()), low, high, method, n=count, unit_of_n="images")]
    low, high, method = interval_of_mean(torch.from_numpy(correct[0]))
    metrics.append(Metric("clean", float(correct[0].mean()), low, high, method, n=count, unit_of_n="images"))
    for family, members in FAMILIES.items():
        chosen = [name for name in members if any(name == condition[0] for condition in conditions)]
        if chosen:
            metrics.append(Metric(family, _accuracy(correct, conditions, chosen), n=count, unit_of_n="images"))
    return metrics


def _accuracy(correct: NDArray[np.float64], conditions: list[Condition], names: list[str]) -> float:
    """Return the mean accuracy over all severities of some corruptions."""
    places = [place for place, (name, _) in enumerate(conditions, start=1) if name in names]
    return float(correct[places].mean())


def _worst(correct: NDArray[np.float64], conditions: list[Condition], names: list[str]) -> str:
    """Return which corruptions take most from the checkpoint."""
    clean = float(correct[0].mean())
    lost = sorted((_accuracy(correct, conditions, [name]) - clean, name) for name in names)[:3]
    return f"The checkpoint changes most by {', '.join(f'{name} ({100 * change:+.1f} points)' for change, name in lost)}."


def _draw(
    path: Path,
    session: EvaluationSession,
    classifier: Classifier,
    number: int,
    rows: NDArray[np.int64],
    conditions: list[Condition],
    correct: NDArray[np.float64],
    seed: int,
) -> None:
    """Write a picture of one test image under each corruption and severity, with the checkpoint's accuracy on all images."""
    (image,) = classifier.images(session.parts.tests[number].index.subset(rows))
    names, severities = (list(dict.fromkeys(values)) for values in zip(*conditions, strict=True))
    step, height = _TILE + _GAP, _TILE + _TEXT + _GAP
    sheet = Image.new("RGB", (step * (len(names) + 1) + _GAP, height * len(severities) + _GAP + _TEXT), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)

    def place(picture: Tensor, column: int, line: int, accuracy: float) -> None:
        left, top = _GAP + column * step, _TEXT + _GAP + line * height
        sheet.paste(as_tile(picture, _TILE), (left, top))
        pen.text((left, top + _TILE), f"{accuracy:.1%}", fill="black", font=font)

    pen.text((_GAP, 2), "clean", fill="black", font=font)
    place(image, 0, 0, float(correct[0].mean()))
    for column, name in enumerate(names, start=1):
        pen.text((_GAP + column * step, 2), name.replace("_", " "), fill="black", font=font)
        for line, severity in enumerate(severities):
            changed = corrupt(image[None], name, severity, rows.tolist(), seed)[0]
            place(changed, column, line, float(correct[1 + conditions.index((name, severity))].mean()))
    with write_atomically(path) as stream:
        sheet.save(stream, format="PNG")
