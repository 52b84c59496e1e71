"""Evaluations of frozen features: fit on the training part, then measure on each test part once, for every model compared.

What is fitted never sees a test part: `FeatureEvaluation.fit` gets a training view, and the test parts have no reader before
it returned.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation
from sslkit.contract.result import Comparison, Data, Fit, Metric, Result, Row, TestData
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.metrics import ByClass, mean_correct, score
from sslkit.evaluation.models import CHECKPOINT, Model, compare_models
from sslkit.evaluation.notes import note_on_labels, write_notes
from sslkit.evaluation.protocols import part_setting
from sslkit.evaluation.references import reference_rows
from sslkit.evaluation.splits import Parts, find_labeled, held_out_rows, labeled_fingerprint, source_of
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, count_duplicates
from sslkit.specs.evaluation import EvaluationSpec

Layers = dict[str, Tensor]  # features by layer, [N, width]
Settings = dict[str, Any]
_CHOICE_SHARE = 0.2  # of the training part: held out to choose a layer on
S = TypeVar("S", bound="SplitFeatures")


@dataclass(frozen=True)
class SplitFeatures:
    """Features and labels `[N]` of one part of the data."""

    layers: Layers
    labels: Tensor
    rows: NDArray[np.int64]  # of the data; unreadable samples are missing
    hashes: NDArray[np.int64]

    @property
    def features(self) -> Tensor:
        """Return the features `[N, width]` of the only layer."""
        (features,) = self.layers.values()
        return features


@dataclass(frozen=True)
class TrainingView(SplitFeatures):
    """The training part, all that a fit gets to see."""

    classes: tuple[str, ...]
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    groups: NDArray[np.int64] | None = None  # [N]: samples that are held out together

    def hold_out(self, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return rows `[N]` to fit on and rows to choose on: `share` of each class is held out, drawn by the seed."""
        return held_out_rows(self.labels.numpy(), seed, self.classes, share, self.groups)

    def take(self, rows: NDArray[np.int64]) -> Self:
        """Return some of the samples; `rows` count in the features."""
        return replace(
            self,
            layers={name: features[rows] for name, features in self.layers.items()},
            labels=self.labels[rows],
            rows=self.rows[rows],
            hashes=self.hashes[rows],
            groups=None if self.groups is None else self.groups[rows],
        )


class Predictor(ABC):
    """What a fit returns: it predicts from features alone."""

    n_train: int
    chosen: Mapping[str, Any] = {}  # on held-out training data
    held_out: Mapping[str, float] = {}  # accuracy there of each candidate

    @abstractmethod
    def scores(self, layers: Layers) -> Tensor:
        """Return class scores `[M, classes]`."""


@dataclass(frozen=True)
class Measurement:
    """What the predictors of all seeds reach on one test part.

    `correct` `[M]` allows a paired test: the headline of each sample, whose mean it is.
    """

    metrics: list[Metric]
    by_class: ByClass = field(default_factory=dict)
    correct: Tensor | None = None


@dataclass(frozen=True)
class FeatureReader:
    """Reads one model's features of the training part and, in a second step, of the test parts."""

    session: "EvaluationSession"
    model: Model
    layer: str
    pool: str

    @cached_property
    def training_source(self) -> IndexedSource:
        """Return the source of the training part."""
        spec, model = self.session.spec, self.model
        return source_of(self.session.checkpoint).for_evaluation(
            self.session.parts.train, spec, model.encoder, model.size, None
        )

    def training(self) -> TrainingView:
        """Return the training part."""
        features, groups = self._extract(self.training_source), self.training_source.index.groups
        return TrainingView(
            features.layers,
            features.labels,
            features.rows,
            features.hashes,
            self.session.classes,
            self.session.device,
            None if groups is None else groups[features.rows],
        )

    def tests(self) -> list[SplitFeatures]:
        """Return the test parts, whose sources are opened now."""
        spec, model, source_class = self.session.spec, self.model, source_of(self.session.checkpoint)
        return [
            self._extract(source_class.for_evaluation(test.index, spec, model.encoder, model.size, self.training_source))
            for test in self.session.parts.tests
        ]

    def _extract(self, samples: IndexedSource) -> SplitFeatures:
        features = cached_features(self.model, samples, self.layer, self.pool, self.session.spec)
        labels = samples.index.labels
        assert labels is not None
        return SplitFeatures(features.layers, torch.from_numpy(labels[features.rows]), features.rows, features.hashes)


@dataclass(frozen=True)
class EvaluationSession:
    """The models compared, and the data they are compared on."""

    spec: EvaluationSpec
    checkpoint: Checkpoint
    models: list[Model]
    parts: Parts

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return self.parts.classes

    @property
    def device(self) -> torch.device:
        """Return where the encoders are."""
        return self.models[0].encoder.device

    def recorded(self, settings: Settings) -> Settings:
        """Return settings with what else decides the numbers: part, size, seed, where labels come from."""
        others = {"size": self.models[0].size, "seed": self.spec.seed, **self.parts.annotations}
        return {**settings, **part_setting(self.spec.part), **others}

    def reader(self, model: Model, layer: str) -> FeatureReader:
        """Return a reader of a model's features; `layer` as in `--layer`."""
        layer = "all" if layer in ("auto", "mix") else layer  # to choose from, or to add up
        return FeatureReader(self, model, *model.adapt(layer, self.spec.pool))


def open_session(spec: EvaluationSpec, pixels: int = 32) -> EvaluationSession:
    """Read checkpoint and data for an evaluation; raises SslkitError for anything that is missing or does not fit.

    Raw pixels, for comparison, are those of images shrunk to `pixels`.
    """
    checkpoint = read_model(spec.ckpt, part=spec.part)
    source_of(checkpoint)
    device, _ = choose_device(spec.device)
    models = compare_models(checkpoint, spec, device, pixels)
    return EvaluationSession(spec, checkpoint, models, find_labeled(spec, spec.test, checkpoint))


class FeatureEvaluation(Evaluation):
    """Base of evaluations of frozen features: a subclass fits a predictor, and may measure something else than accuracy."""

    baseline_pixels: ClassVar[int] = 32  # side of the images whose raw pixels are a baseline
    classifies: ClassVar[bool] = False  # whether classifiers that need no encoder stand beside it
    by_distance: ClassVar[bool] = False  # whether features are compared by their distances, as k-NN does; nothing is fitted

    def fit(self, train: TrainingView, settings: Settings, seed: int) -> Predictor:
        """Return what predicts, fitted on the training part only."""
        raise TypeError(f"{type(self).__name__} does not define fit()")

    def measure(self, predictors: list[Predictor], test: SplitFeatures, classes: tuple[str, ...]) -> Measurement:
        """Return what predictors, one for each seed, reach on a test part: accuracies, unless overridden."""
        scores = [predictor.scores(test.layers) for predictor in predictors]
        metrics, by_class = score(scores, test.labels, classes)
        return Measurement(metrics, by_class, mean_correct(scores, test.labels))

    def resolve(self, spec: Any, session: EvaluationSession) -> tuple[str | None, Settings]:
        """Return the protocol's id, None if a value was set by hand, and all settings; raises SslkitError for unfit ones."""
        return resolve_protocol(self, spec)

    def fits_layers_together(self, settings: Settings) -> bool:
        """Return whether one fit gets all layers at once, not a fit for each layer."""
        return False

    def run(self, spec: Any) -> Result:
        """Evaluate and return the result, also added to the run's `results.jsonl`."""
        started_at = time.monotonic()
        session = open_session(spec, self.baseline_pixels)
        protocol, settings = self.resolve(spec, session)
        table = _Table(session)
        for model in session.models:
            self._add_rows(table, model, settings)
        if self.classifies and spec.baselines and settings.get("shots") is None:
            table.add_references()
        rows = adjust_comparisons(table.rows)
        data = Data(labeled_fingerprint(session.parts.train), table.tests)
        result = Result(
            verb=self.verb,
            protocol=protocol,
            settings=session.recorded(settings),
            checkpoint=str(session.checkpoint.path),
            weights=rows[0].weights,
            data=data,
            rows=rows,
            notes=[*write_notes(rows, data), *note_on_labels(session.checkpoint.metadata)],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, session.checkpoint, spec, self.by_distance)
        append_result(session.checkpoint.path.parent, result.to_json())
        return result

    def _add_rows(self, table: "_Table", model: Model, settings: Settings) -> None:
        """Add one model's rows: everything is fitted before a test part is read."""
        reader = table.session.reader(model, settings["layer"])
        train, together = reader.training(), self.fits_layers_together(settings)
        seeds = [table.session.spec.seed + number for number in range(settings.get("seeds", 1))]
        names: list[str | None] = [None] if together else list(train.layers)
        choice: dict[str, str] = {}
        if settings["layer"] == "auto":
            names = [self._choose_layer(train, settings, seeds[0])]
            choice = {"layer": str(names[0])}
        predictors = {name: [self.fit(_select(train, name), settings, seed) for seed in seeds] for name in names}  # by layer
        tests = reader.tests()
        for name in names:
            for number, test in enumerate(tests):
                measurement = self.measure(predictors[name], _select(test, name), table.session.classes)
                fits = [
                    Fit(seed, predictor.n_train, {**choice, **predictor.chosen}, dict(predictor.held_out))
                    for seed, predictor in zip(seeds, predictors[name], strict=True)
                ]
                table.add(model, name, number, measurement, fits, train, test)

    def _choose_layer(self, train: TrainingView, settings: Settings, seed: int) -> str:
        """Return the layer that reaches most on a held-out fifth of the training part, fitted on the rest."""
        kept, held_out = (train.take(rows) for rows in train.hold_out(_CHOICE_SHARE, seed))
        reached = {}
        for name in train.layers:
            predictor = self.fit(_select(kept, name), settings, seed)
            reached[name] = self.measure([predictor], _select(held_out, name), train.classes).metrics[0].value
        return max(reached, key=lambda name: reached[name])


class _Table:
    """Rows in the making: the checkpoint's answers are what the other models' are compared with."""

    def __init__(self, session: EvaluationSession) -> None:
        self.session = session
        self.rows: list[Row] = []
        self.tests: list[TestData] = []
        self._outcomes = CheckpointOutcomes[Answers](compare_answers)

    def add(
        self,
        model: Model,
        layer: str | None,
        number: int,
        measurement: Measurement,
        fits: list[Fit],
        train: SplitFeatures,
        test: SplitFeatures,
    ) -> None:
        """Add the row of a model, layer and test part."""
        part = self.session.parts.tests[number]
        if len(self.tests) == number:
            duplicates = count_duplicates(train.hashes, test.hashes)
            fingerprint = labeled_fingerprint(part.index)
            self.tests.append(TestData(part.name, fingerprint, len(test.labels), duplicates, part.seen_in_pretraining))
        comparisons: dict[str, Comparison] = {}
        if measurement.correct is not None:
            answers = Answers(test.rows, measurement.correct)
            comparisons = self._outcomes.compare(model.role, number, layer, answers)
        self.rows.append(
            Row(
                model=model.name,
                metrics=measurement.metrics,
                test=part.name,
                layer=layer,
                by_class=measurement.by_class,
                comparisons=comparisons,
                weights=model.weights,
                fits=fits,
                role=model.role,
            )
        )

    def add_references(self) -> None:
        """Add the rows of the modality's classifiers that need no encoder."""
        session = self.session
        answers = [self._outcomes.last(number) for number in range(len(session.parts.tests))]
        modality, seed = session.checkpoint.evaluated_as, session.spec.seed
        self.rows += reference_rows(modality, session.parts, seed, (CHECKPOINT, answers))


def _select(features: S, layer: str | None) -> S:
    """Return the features of one layer only, or of all."""
    return features if layer is None else replace(features, layers={layer: features.layers[layer]})


def resolve_protocol(evaluation: Evaluation, spec: EvaluationSpec) -> tuple[str | None, Settings]:
    """Return the protocol's id and settings, with the values set by hand, which make the id None."""
    protocol = evaluation.find_protocol(getattr(spec, "protocol", evaluation.protocols[0].id))
    settings = {"layer": "last", "pool": "auto", **protocol.settings}
    own_options = type(spec).model_fields.keys() - EvaluationSpec.model_fields.keys() - {"protocol"}
    values = {name: value for name in own_options if (value := getattr(spec, name)) is not None}
    foreign = sorted(values.keys() - settings.keys())
    if foreign:
        raise SslkitError(f"{protocol.id} has no such setting", "see `sslkit protocols`", flag=foreign[0])
    values |= {name: getattr(spec, name) for name in ("layer", "pool") if name in spec.model_fields_set} | spec.sample_values()
    repeats = settings.get("seeds", 1) > 1  # a protocol with one seed keeps its id with more
    by_hand = [name for name in values if values[name] != settings.get(name, "auto") or name in own_options]
    by_hand = [name for name in by_hand if name != "seeds" or repeats]
    return None if by_hand else protocol.id, {**settings, **values}
