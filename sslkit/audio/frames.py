"""`sslkit frames`: a label, such as the phone, for each frame of recordings from frozen features."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from sslkit.audio.alignments import Alignment, fingerprint, read_alignments
from sslkit.audio.encoders.base import AudioEncoder
from sslkit.audio.frame_features import FrameReader, frame_reader, mfcc_reader, read_frames
from sslkit.audio.reading import measure_recording
from sslkit.audio.source import AudioSource
from sslkit.audio.specs import FramesSpec
from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Fit, Result, Role, Row, TestData
from sslkit.data.index import Index
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import Model, compare_models
from sslkit.evaluation.notes import count
from sslkit.evaluation.positions import fit_positions, predict_positions, ratio_metric, recall_by_label
from sslkit.evaluation.protocols import part_setting
from sslkit.evaluation.session import Predictor
from sslkit.evaluation.shared_names import note_shared_names
from sslkit.evaluation.splits import check_groups, draw_held_out, test_location
from sslkit.evaluation.statistics import Totals, adjust_comparisons, compare_ratios

_TEST_SHARE = 0.2  # of the recordings, or groups, where there is no test part
_RECORDINGS = "recordings"  # the unit of the bootstrap: frames of one depend on each other
_SETTINGS = {"c": [0.01, 0.1, 1.0], "iterations": 100, "held_out": 0.2, "max_frames": 200_000, "layer": "last"}
_MAJORITY = "most frequent label"
_SEEN = "; seen in pretraining"
_AT_ONCE = 200  # test recordings whose features are in memory


@dataclass(frozen=True)
class _Recordings:
    """Recordings of one part that have an alignment, by row."""

    location: str
    index: Index
    alignments: dict[int, Alignment]
    seen_in_pretraining: bool

    @property
    def rows(self) -> list[int]:
        """Return the rows in the order of the data."""
        return sorted(self.alignments)

    def units(self) -> NDArray[np.int64]:
        """Return what is held out together, by row of the index: groups, or each recording."""
        return np.arange(len(self.index)) if self.index.groups is None else self.index.groups

    def subset(self, rows: Sequence[int], location: str) -> "_Recordings":
        """Return some of the rows."""
        return replace(self, location=location, alignments={row: self.alignments[row] for row in rows})

    def limit(self, seconds: float, seed: int) -> "_Recordings":
        """Return recordings with about so many seconds of labels, sampled by the seed, of two units or more.

        Raises SslkitError if there is only one unit.
        """
        order = np.random.default_rng(seed).permutation(self.rows)
        units, total, kept = self.units(), 0.0, list[int]()
        for row in order.tolist():
            of_row = float((self.alignments[row].ends - self.alignments[row].starts).sum())
            if total + of_row > seconds and len({units[each] for each in kept}) > 1:
                break
            kept.append(row)
            total += of_row
        if len({units[each] for each in kept}) < 2:
            unit = "recording" if self.index.groups is None else "group"
            raise SslkitError(
                f"{self.location} has one {unit} with labels", "at least two are needed, to fit and choose", flag="data"
            )
        return self.subset(kept, self.location)


class Frames(Evaluation):
    """Predict a label for each frame of recordings, such as the phone that is spoken, from frozen features."""

    verb = "frames"
    Options = FramesSpec
    labels = "token"
    requires = ("frames",)
    modalities = ("audio",)
    protocols = (
        Protocol(
            "frames/logreg-v1",
            "logistic regression on frames whose middle has a label; C chosen on a fifth of the recordings; accuracy",
            _SETTINGS,
        ),
    )

    def run(self, spec: FramesSpec) -> Result:
        """Fit linear classifiers on the frames of a training part and measure them on each test part once.

        Raises SslkitError for encoders without frames, and for labels that are missing or malformed.
        """
        started_at = time.monotonic()
        spec.check_modality("audio")
        if spec.pool != "auto":
            raise SslkitError("frames are labeled one by one", "leave it out", flag="pool")
        for name in ("label", "label_pattern"):
            if getattr(spec, name) is not None:
                raise SslkitError("labels are those of --alignments", "leave it out", flag=name)
        checkpoint = read_model(spec.ckpt, part=spec.part)
        checkpoint.check_modality("audio")
        models = [
            replace(model, name="MFCC") if model.role == "baseline" else model
            for model in compare_models(checkpoint, spec, choose_device(spec.device)[0], 0)
        ]
        readers = _readers(models, spec.layer)
        train, tests = _read_parts(spec, checkpoint.metadata["data"])
        train = train.limit(spec.max_frames * readers[0].hop / readers[0].rate, spec.seed)
        table = _Table(train, tests)
        for model, reader in zip(models, readers, strict=True):
            table.fit_and_add(model, reader, spec)
        if spec.baselines:
            table.add_majority(spec.seed)
        named = {name: getattr(spec, name, None) for name in _SETTINGS}
        settings = _SETTINGS | {name: value for name, value in named.items() if value is not None}
        unchanged = settings == _SETTINGS and not spec.sample_values()
        rows = adjust_comparisons(table.rows)
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id if unchanged else None,
            settings={**settings, **part_setting(spec.part), "size": models[0].size, "seed": spec.seed, "tier": spec.tier},
            checkpoint=str(checkpoint.path),
            weights=rows[0].weights,
            data=Data(
                fingerprint(train.index, train.alignments),
                [
                    TestData(
                        test.location,
                        fingerprint(test.index, test.alignments),
                        len(labels),
                        seen_in_pretraining=test.seen_in_pretraining,
                    )
                    for test, (labels, _) in zip(tests, table.truth, strict=True)
                ],
            ),
            rows=rows,
            notes=table.notes(readers[0]),
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def frames(spec: FramesSpec) -> Result:
    """Predict a label for each frame of recordings from frozen features, as `sslkit frames` does."""
    return Frames().run(spec)


def _readers(models: list[Model], layer: str) -> list[FrameReader]:
    """Return what reads the frames of each model; MFCC are those of the checkpoint's frames."""
    readers: list[FrameReader] = []
    for model in models:
        assert isinstance(model.encoder, AudioEncoder)
        plain = model.role == "baseline"
        readers.append(mfcc_reader(readers[0]) if plain else frame_reader(model.encoder, model.name, layer))
    return readers


def _read_parts(spec: FramesSpec, pretrained_on: str) -> tuple[_Recordings, list[_Recordings]]:
    """Return the training part and the test parts; without any, a fifth of the recordings, or groups, is held out."""
    if spec.data is None:
        raise SslkitError("missing", f"give {AudioSource.kind.accepts}", flag="data")
    parts = find_parts(spec.data, AudioSource.kind)
    train = _read_part(parts.pop("train"), spec.data, spec, pretrained_on)
    tests = []
    for named in spec.test:
        with renamed_flags({"data": "test"}):
            name, location = test_location(named, AudioSource.kind)
            tests.append(_read_part(location, named if location == named else f"{name} of {named}", spec, pretrained_on))
    if not tests and parts:
        name, location = next(iter(parts.items()))
        tests = [_read_part(location, f"{name} of {spec.data}", spec, pretrained_on)]
    for test in tests:
        check_groups(train.index, test.index, "test" if spec.test else "data")
        say_once(f"test part: {test.location}" + _SEEN * test.seen_in_pretraining)
    if not tests:
        units = train.units()[train.rows]
        distinct, places = np.unique(units, return_inverse=True)
        unit = "recording" if train.index.groups is None else "group"
        if len(distinct) < 3:
            problem = f"{spec.data} has {count(len(distinct), unit)} with labels"
            raise SslkitError(problem, "at least three are needed, to fit, choose and test on", flag="data")
        addition = _SEEN * train.seen_in_pretraining
        say_once(f"test part: a fifth of the {unit}s of {spec.data}, drawn by --seed {spec.seed}{addition}")
        held_out = draw_held_out(len(distinct), _TEST_SHARE, spec.seed)[places]
        rows = np.array(train.rows)
        tests = [train.subset(rows[held_out].tolist(), f"a fifth of {spec.data}")]
        train = train.subset(rows[~held_out].tolist(), train.location)
    unlabeled = [
        replace(part.index.subset(np.array(part.rows)), labels=None, classes=()) for part in (train, tests[0])
    ]  # a folder is no label here, and may be a speaker
    note_shared_names(*unlabeled)
    return train, tests


def _read_part(location: str, name: str, spec: FramesSpec, pretrained_on: str) -> _Recordings:
    index = AudioSource.read_index(location, spec)
    alignments = read_alignments(index, spec.alignments, spec.tier, lambda row: measure_recording(index, row)[1])
    if len(alignments) < len(index):
        say_once(f"{len(index) - len(alignments):,} of {len(index):,} recordings of {name} have no labels: they are left out")
    return _Recordings(name, index, alignments, index.fingerprint() == pretrained_on)


class _Table:
    """Rows in the making: the checkpoint's predictions are what the others' are compared with."""

    def __init__(self, train: _Recordings, tests: list[_Recordings]) -> None:
        self.train, self.tests, self.rows = train, tests, list[Row]()
        self.training_labels = Counter[str]()
        self.truth: list[tuple[list[str], NDArray[np.int64]]] = []  # labels and rows of frames, by test part
        self._outcomes = CheckpointOutcomes[Totals](partial(compare_ratios, unit=_RECORDINGS))

    def fit_and_add(self, model: Model, reader: FrameReader, spec: FramesSpec) -> None:
        """Add one model's rows: everything is fitted before a test part is read by it."""
        train, layer = self.train, "last" if model.role == "baseline" else spec.layer
        fitted = read_frames(reader, train.index, train.alignments, train.rows, model.size)
        _check_labels(train, fitted.labels)
        classes = tuple(sorted(set(fitted.labels)))
        if len(classes) < 2:
            raise SslkitError(f"{train.location} has only the label {classes[0]}", "at least two are needed", flag="alignments")
        if model.role == "checkpoint":
            self.training_labels = Counter(fitted.labels)
        units = np.unique(train.units()[fitted.rows], return_inverse=True)[1]
        settings = _SETTINGS if spec.c is None else {**_SETTINGS, "c": spec.c}
        predictors = fit_positions(fitted.layers, fitted.labels, units, classes, reader.device, spec.seed, settings, layer)
        for number, test in enumerate(self.tests):
            labels, rows, predictions = _predict(reader, test, model.size, predictors, classes)
            if model.role == "checkpoint":
                self.truth.append((labels, rows))
            for name, predicted in predictions.items():
                predictor = predictors[name]
                fit = Fit(spec.seed, predictor.n_train, dict(predictor.chosen), dict(predictor.held_out))
                named = None if layer == "last" else name
                self._add(model.name, model.role, named, number, labels, rows, predicted, fit, model.weights)

    def add_majority(self, seed: int) -> None:
        """Add the rows of the label that frames have most often in training."""
        label, fit = self.training_labels.most_common(1)[0][0], Fit(seed, self.training_labels.total())
        for number, (labels, rows) in enumerate(self.truth):
            self._add(_MAJORITY, "baseline", None, number, labels, rows, [label] * len(labels), fit, "")

    def notes(self, reader: FrameReader) -> list[str]:
        """Return what was fitted and tested on."""
        notes = [
            f"Fitted on {count(self.training_labels.total(), 'frame')}, one every {1000 * reader.hop / reader.rate:g} ms, of "
            f"{count(len(self.train.rows), 'recording')}; {len(self.training_labels)} labels."
        ]
        for test, (labels, _) in zip(self.tests, self.truth, strict=True):
            if test.seen_in_pretraining:
                notes.append(f"The test data of {test.location} was part of pretraining.")
            notes.append(f"{test.location}: {count(len(test.rows), 'recording')}, {count(len(labels), 'frame')}.")
            foreign = Counter(label for label in labels if label not in self.training_labels)
            if foreign:
                wrong, names = count(foreign.total(), "frame"), ", ".join(sorted(foreign)[:5])
                notes.append(f"Wrong in any case: {wrong} with a label that training lacks ({names}).")
        return notes

    def _add(
        self,
        name: str,
        role: Role,
        layer: str | None,
        number: int,
        labels: list[str],
        rows: NDArray[np.int64],
        predicted: list[str],
        fit: Fit,
        weights: str,
    ) -> None:
        test = self.tests[number]
        right = np.array([label == answer for label, answer in zip(labels, predicted, strict=True)], dtype=np.float64)
        places = np.searchsorted(test.rows, rows)
        recordings = len(test.rows)
        sums, sizes = np.zeros(recordings), np.zeros(recordings)
        np.add.at(sums, places, right)
        np.add.at(sizes, places, 1)
        totals = Totals(sums, sizes)
        metric = ratio_metric("accuracy", totals, len(labels), "frames", _RECORDINGS)
        comparisons = self._outcomes.compare(role, number, layer, totals)
        row = Row(name, [metric], test.location, layer=layer, comparisons=comparisons)
        by_label = recall_by_label(labels, predicted)
        self.rows.append(replace(row, by_class=by_label, weights=weights, fits=[fit], role=role))


def _predict(
    reader: FrameReader, test: _Recordings, window: int, predictors: dict[str, Predictor], classes: tuple[str, ...]
) -> tuple[list[str], NDArray[np.int64], dict[str, list[str]]]:
    """Return labels, rows and predictions by layer of all frames of a test part; features are kept of some recordings only."""
    labels, rows = list[str](), list[NDArray[np.int64]]()
    predictions: dict[str, list[str]] = {name: [] for name in predictors}
    for start in range(0, len(test.rows), _AT_ONCE):
        tested = read_frames(reader, test.index, test.alignments, test.rows[start : start + _AT_ONCE], window)
        if not tested.labels:
            continue
        labels += tested.labels
        rows.append(tested.rows)
        for name, predicted in predict_positions(predictors, tested.layers, classes).items():
            predictions[name] += predicted
    _check_labels(test, labels)
    return labels, np.concatenate(rows), predictions


def _check_labels(part: _Recordings, labels: list[str]) -> None:
    """Raise SslkitError if no frame has a label."""
    if not labels:
        hint = "are times in seconds, and recordings readable?"
        raise SslkitError(f"no frame of {part.location} has a label", hint, flag="alignments")
