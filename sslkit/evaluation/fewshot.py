"""`sslkit fewshot`: accuracy of linear classifiers by the number of labels per class, over several draws of the labels."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Protocol
from sslkit.contract.result import Metric, Result
from sslkit.evaluation.knn import draw_shots
from sslkit.evaluation.metrics import is_correct
from sslkit.evaluation.probe import LinearClassifier
from sslkit.evaluation.session import (
    EvaluationSession,
    FeatureEvaluation,
    Layers,
    Measurement,
    Predictor,
    Settings,
    SplitFeatures,
    TrainingView,
    resolve_protocol,
)
from sslkit.evaluation.solvers import Standardized, cross_entropy, fit_linear
from sslkit.evaluation.statistics import interval_of_mean
from sslkit.files import output_path, write_atomically
from sslkit.specs.evaluation import FewshotSpec

MEAN = "mean of the curve"
_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _MARGIN = 640, 400, 60, 50, 24
_COLORS = ((38, 90, 168), (217, 95, 2), (27, 138, 90), (117, 76, 162), (190, 44, 90), (90, 90, 90))


class Fewshot(FeatureEvaluation):
    """Fit linear classifiers on 1, 5, 10 and 50 labels per class: a curve, with the deviation between draws."""

    verb = "fewshot"
    Options = FewshotSpec
    in_all = False
    protocols = (
        Protocol(
            "fewshot/curve-v1",
            "logistic regression (C 0.1, standardized features) on 1, 5, 10 and 50 labels per class; mean of 10 draws of each",
            {"shots": [1, 5, 10, 50], "seeds": 10, "c": 0.1, "iterations": 100},
        ),
    )

    def resolve(self, spec: Any, session: EvaluationSession) -> tuple[str | None, Settings]:
        """Return the protocol's id and the settings, the numbers of labels in order."""
        by_protocol = {"out": None, **({"shots": None} if spec.shots == FewshotSpec.model_fields["shots"].default else {})}
        protocol, settings = resolve_protocol(self, spec.model_copy(update=by_protocol))
        if settings["layer"] in ("auto", "mix"):
            raise SslkitError("a few labels cannot choose a layer", "name one", flag="layer")
        return protocol, {**settings, "shots": sorted(set(settings["shots"]))}

    def fit(self, train: TrainingView, settings: Settings, seed: int) -> Predictor:
        """Return a classifier for each number of labels, those of one draw."""
        classifiers = {}
        with show_progress("fitting", len(settings["shots"])) as progress:
            for shots in settings["shots"]:
                rows = draw_shots(train.labels, shots, seed, train.classes)
                data = Standardized.of(train.features[rows], train.device)
                labels = train.labels[rows].to(train.device)
                weights = fit_linear(data, labels, len(train.classes), settings["c"], cross_entropy, settings["iterations"])
                classifiers[shots] = LinearClassifier(weights, data)
                progress.advance(1)
        return Curve(classifiers)

    def measure(self, predictors: list[Predictor], test: SplitFeatures, classes: tuple[str, ...]) -> Measurement:
        """Return accuracies by the number of labels, and their mean first."""
        curves = [predictor for predictor in predictors if isinstance(predictor, Curve)]
        correct = torch.stack([torch.stack(curve.correct(test)) for curve in curves])
        count, draws = len(test.labels), len(correct)  # [draws, shots, N]
        mean = correct.mean(dim=(0, 1))
        low, high, method = interval_of_mean(mean)
        metrics = [Metric(MEAN, float(mean.mean()), low, high, method, None, draws, count)]
        for place, shots in enumerate(curves[0].classifiers):
            by_draw = correct[:, place].mean(dim=1).numpy()
            deviation = float(by_draw.std(ddof=1)) if draws > 1 else None
            metrics.append(Metric(f"{shots} per class", float(by_draw.mean()), deviation=deviation, seeds=draws, n=count))
        return Measurement(metrics, correct=mean)

    def run(self, spec: Any) -> Result:
        """Evaluate, and draw the curves if a picture was asked for."""
        picture = None if spec.out is None else output_path(spec.out, ".png")
        result = super().run(spec)
        if picture is not None:
            draw_curves(result, picture)
        return result


class Curve(Predictor):
    """Classifiers by the number of labels per class they were fitted on."""

    def __init__(self, classifiers: dict[int, LinearClassifier]) -> None:
        self.classifiers = classifiers
        self.n_train = list(classifiers.values())[-1].n_train

    def scores(self, layers: Layers) -> Tensor:
        """Return class scores `[M, classes]` of the one with the most labels."""
        return list(self.classifiers.values())[-1].scores(layers)

    def correct(self, test: SplitFeatures) -> list[Tensor]:
        """Return whether each test sample is right, float64 `[M]`, for each number of labels."""
        return [is_correct(classifier.scores(test.layers), test.labels) for classifier in self.classifiers.values()]


def fewshot(spec: FewshotSpec) -> Result:
    """Evaluate a checkpoint by classifiers on few labels, as `sslkit fewshot` does."""
    return Fewshot().run(spec)


def draw_curves(result: Result, path: Path) -> None:
    """Write a picture of the curves on the first test part, with bands of a standard deviation between draws."""
    rows = [row for row in result.rows if row.test == result.rows[0].test and len(row.metrics) > 1 and row.fits]
    curves = {
        row.model: [(int(each.name.split()[0]), each.value, each.deviation or 0.0) for each in row.metrics[1:]] for row in rows
    }
    counts = [shots for shots, _, _ in next(iter(curves.values()))]
    top = min(1.0, 0.1 * np.ceil(10 * max(value + band for points in curves.values() for _, value, band in points)))
    steps = np.log([max(counts[0], 1), counts[-1] if len(counts) > 1 else counts[0] + 1])

    def at(shots: float, value: float) -> tuple[float, float]:
        across = (np.log(shots) - steps[0]) / (steps[1] - steps[0])
        return _LEFT + across * (_WIDTH - _LEFT - _MARGIN), _HEIGHT - _BOTTOM - value / top * (_HEIGHT - _BOTTOM - _MARGIN)

    sheet = Image.new("RGB", (_WIDTH, _HEIGHT), "white")
    font, pen = ImageFont.load_default(12), ImageDraw.Draw(sheet, "RGBA")
    for line in range(round(10 * top) + 1):
        _, height = at(counts[0], line / 10)
        pen.line((_LEFT, height, _WIDTH - _MARGIN, height), fill=(220, 220, 220))
        pen.text((10, height - 7), f"{10 * line}%", fill="black", font=font)
    for shots in counts:
        pen.text((at(shots, 0)[0] - 6, _HEIGHT - _BOTTOM + 6), str(shots), fill="black", font=font)
    pen.text((_WIDTH // 2 - 40, _HEIGHT - 22), "labels per class", fill="black", font=font)
    for place, (model, points) in enumerate(curves.items()):
        color = _COLORS[place % len(_COLORS)]
        band = [at(shots, value + width) for shots, value, width in points]
        band += [at(shots, max(0.0, value - width)) for shots, value, width in reversed(points)]
        if len(points) > 1:
            pen.polygon(band, fill=(*color, 50))
            pen.line([at(shots, value) for shots, value, _ in points], fill=color, width=2)
        for shots, value, _ in points:
            across, height = at(shots, value)
            pen.ellipse((across - 3, height - 3, across + 3, height + 3), fill=color)
        pen.text((_LEFT + 12, _MARGIN + 16 * place), Path(model).name if "/" in model else model, fill=color, font=font)
    with write_atomically(path) as stream:
        sheet.save(stream, format="PNG")
