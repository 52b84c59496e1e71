"""`sslkit regress`: numbers predicted from frozen features by ridge regression."""

import time
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Comparison, Data, Fit, Metric, Result, Row, TestData
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.features import Features
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import Model, compare_models
from sslkit.evaluation.notes import count
from sslkit.evaluation.protocols import part_setting
from sslkit.evaluation.solvers import Standardized, accumulation_type, keep_on_device
from sslkit.evaluation.splits import (
    check_channels,
    check_groups,
    check_run_data,
    draw_held_out,
    named_data,
    source_of,
    test_location,
)
from sslkit.evaluation.statistics import (
    adjust_comparisons,
    compare_resamples,
    count_duplicates,
    interval_of_resamples,
    resample_spearman,
    spearman,
)
from sslkit.registry import load_modality
from sslkit.specs.evaluation import RegressSpec

_PIXELS = 32  # side of the images whose raw pixels are a baseline
_TEST_SHARE = 0.2  # where there is no test part
_SMALLEST = 10  # samples to fit and to choose on
_SETTINGS: dict[str, Any] = {"penalty": [1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0], "held_out": 0.2, "layer": "last", "pool": "auto"}


class Regress(Evaluation):
    """Predict a number for each sample, such as an age or a rating, from frozen features."""

    verb = "regress"
    Options = RegressSpec
    labels = "number"
    protocols = (
        Protocol(
            "regress/ridge-v1",
            "ridge regression on standardized features; the penalty chosen on a fifth of the training part",
            _SETTINGS,
        ),
    )

    def run(self, spec: RegressSpec) -> Result:
        """Fit ridge regressions on the training part and measure them on each test part once.

        Raises SslkitError for labels that are no numbers or all alike, and for encoders and layers that are not there.
        """
        started_at = time.monotonic()
        checkpoint = read_model(spec.ckpt, part=spec.part)
        device, _ = choose_device(spec.device)
        models = compare_models(checkpoint, spec, device, _PIXELS)
        train, tests, spec = _read_parts(spec, checkpoint)
        table = _Table(train, tests)
        for model in models:
            _add_rows(table, model, checkpoint, spec)
        if spec.baselines:
            modality = load_modality(checkpoint.evaluated_as)
            indexes = [test.index for test in tests]
            for name, predicted in modality.reference_values(train.index, torch.from_numpy(train.values), indexes, spec.seed):
                readable = [value.numpy()[rows] for value, rows in zip(predicted, table.present, strict=True)]
                table.add(Row(name, [], fits=[Fit(spec.seed, len(train.values))], role="other"), readable)
        rows = adjust_comparisons(table.rows)
        settings = {**_SETTINGS, "layer": spec.layer, "pool": spec.pool}
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id if settings == _SETTINGS and not spec.sample_values() else None,
            settings={**settings, **part_setting(spec.part), "size": models[0].size, "seed": spec.seed, "label": spec.label},
            checkpoint=str(checkpoint.path),
            weights=rows[0].weights,
            data=Data(train.fingerprint(), table.test_data),
            rows=rows,
            notes=[train.describe("Fitted on"), *(test.describe(f"{test.name}:") for test in tests)],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def regress(spec: RegressSpec) -> Result:
    """Predict a number for each sample from frozen features, as `sslkit regress` does."""
    return Regress().run(spec)


@dataclass(frozen=True)
class NumberedPart:
    """Samples and their numbers `[N]`."""

    name: str
    index: Index  # without labels
    values: NDArray[np.float64]
    flag: str = "data"  # that named it
    seen_in_pretraining: bool = False

    def fingerprint(self) -> str:
        """Return a hash of samples and numbers."""
        return blake2b(self.index.fingerprint().encode() + self.values.tobytes(), digest_size=8).hexdigest()

    def subset(self, rows: NDArray[np.int64], name: str) -> "NumberedPart":
        """Return some of the samples."""
        return replace(self, name=name, index=self.index.subset(rows), values=self.values[rows])

    def describe(self, beginning: str) -> str:
        """Return how many samples there are, and how their numbers are distributed."""
        spread = f"mean {self.values.mean():.4g}, deviation {self.values.std():.4g}"
        return f"{beginning} {count(len(self.values), 'sample')}, {spread}."


def read_numbers(location: str, name: str, spec: RegressSpec, source: type[IndexedSource], flag: str) -> NumberedPart:
    """Return the samples at a location, with their labels as numbers; raises SslkitError, naming the flag, for others."""
    with renamed_flags({"data": flag}):
        index = source.read_index(location, spec)
    if index.labels is None:
        hint = "name the column of numbers with --label, or --label-pattern"
        raise SslkitError(f"{location} has no labels", hint, flag=flag)
    if index.labels.ndim > 1:
        raise SslkitError(f"{location} has several labels per sample", "one number is expected", flag=flag)
    missing = np.flatnonzero(index.labels < 0)
    if len(missing):
        raise SslkitError(f"{index.name(int(missing[0]))} has no label in {location}", "all samples need one", flag=flag)
    numbers = np.array([_number(text, location) for text in index.classes])
    return NumberedPart(name, replace(index, labels=None, classes=()), numbers[index.labels], flag)


def _number(text: str, location: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise SslkitError(
            f"{location} has the label {text!r}, which is no number", "classes are for probe and knn", flag="label"
        )
    return value


def _read_parts(spec: RegressSpec, checkpoint: Checkpoint) -> tuple[NumberedPart, list[NumberedPart], RegressSpec]:
    """Return the training part and the test parts; without any, a fifth of the samples, or groups, is drawn by the seed."""
    data, from_run, spec = named_data(spec, checkpoint)
    source = source_of(checkpoint)
    located = find_parts(data, source.kind)
    train = read_numbers(located.pop("train"), data, spec, source, "data")
    pretrained_on = checkpoint.metadata["data"]
    is_pretrained = train.index.fingerprint() == pretrained_on
    check_run_data(data, from_run, is_pretrained)
    check_channels(train.index, checkpoint)
    named = [(test, *test_location(test, source.kind), "test") for test in spec.test]
    named = named or [(data, part, path, "data") for part, path in located.items()]
    tests = []
    for holder, part, location, flag in named:
        name = holder if holder == location else f"{part} of {holder}"
        test = read_numbers(location, name, spec, source, flag)
        with renamed_flags({"data": flag}):
            check_channels(test.index, checkpoint)
        check_groups(train.index, test.index, flag)
        tests.append(replace(test, seen_in_pretraining=test.index.fingerprint() == pretrained_on))
    if not tests:
        kept, held_out = _hold_out(len(train.values), train.index.groups, _TEST_SHARE, spec.seed)
        tests = [replace(train.subset(held_out, f"a fifth of {data}"), seen_in_pretraining=is_pretrained)]
        train = train.subset(kept, data)
    if len(train.values) < _SMALLEST or len(np.unique(train.values)) < 2:
        problem = f"{train.name} has {count(len(train.values), 'sample')} to fit on"
        raise SslkitError(problem, f"at least {_SMALLEST} with different numbers are needed", flag="data")
    for test in tests:
        say_once(f"test part: {test.name}")
        if len(test.values) < 3 or len(np.unique(test.values)) < 2:
            problem = f"{test.name} has {count(len(test.values), 'sample')}"
            raise SslkitError(problem, "at least three with different numbers are needed", flag=test.flag)
    return train, tests, spec


def _hold_out(
    number: int, groups: NDArray[np.int64] | None, share: float, seed: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows to keep and rows to hold out: a share of the samples, or of the groups, drawn by the seed."""
    _, units = np.unique(np.arange(number) if groups is None else groups, return_inverse=True)
    total = int(units.max()) + 1
    if total < 2:
        raise SslkitError("too few groups", "three are needed: to fit, choose and test on", flag="group")
    chosen = draw_held_out(total, share, seed)
    return np.flatnonzero(~chosen[units]), np.flatnonzero(chosen[units])


@dataclass(frozen=True)
class Ridge:
    """A linear function of standardized features."""

    weights: Tensor  # [D]
    bias: float

    def __call__(self, features: Standardized) -> NDArray[np.float64]:
        """Return numbers `[N]`."""
        weights = self.weights.to(features.device, accumulation_type(features.device))
        chunks = [(chunk.to(weights.dtype) @ weights).double().cpu() for chunk, _ in features.chunks()]
        return torch.cat(chunks).numpy() + self.bias


def fit_ridge(features: Standardized, values: Tensor, penalties: list[float]) -> list[Ridge]:
    """Return the minimizers of the mean squared error plus each penalty times the squared norm of the weights."""
    width, mean = features.features.shape[1], float(values.mean())
    gram, moment = torch.zeros(width, width, dtype=torch.float64), torch.zeros(width, dtype=torch.float64)
    for chunk, places in features.chunks():
        rows = chunk.to(accumulation_type(features.device))
        target = (values[places] - mean).to(rows)
        gram += (rows.T @ rows).double().cpu()
        moment += (rows.T @ target).double().cpu()
    eigenvalues, vectors = torch.linalg.eigh(gram / len(features))
    rotated = vectors.T @ (moment / len(features))
    return [Ridge(vectors @ (rotated / (eigenvalues.clamp(min=0) + penalty)), mean) for penalty in penalties]


def _add_rows(table: "_Table", model: Model, checkpoint: Checkpoint, spec: RegressSpec) -> None:
    """Add one model's rows: everything is fitted before a test part is read by it."""
    source = source_of(checkpoint)
    layer, pool = model.adapt(spec.layer, spec.pool)
    samples = source.for_evaluation(table.train.index, spec, model.encoder, model.size)
    features = cached_features(model, samples, layer, pool, spec)
    table.hashes = features.hashes
    values = torch.from_numpy(table.train.values[features.rows])
    groups = None if table.train.index.groups is None else table.train.index.groups[features.rows]
    kept, held_out = (torch.from_numpy(rows) for rows in _hold_out(len(values), groups, _SETTINGS["held_out"], spec.seed))
    fitted: dict[str, tuple[Ridge, Standardized, Fit]] = {}  # by layer
    for name, layer_features in features.layers.items():
        part = Standardized.of(layer_features, model.encoder.device, kept)
        reached: dict[str, float] = {}
        for penalty, ridge in zip(
            _SETTINGS["penalty"], fit_ridge(part.select(kept), values[kept], _SETTINGS["penalty"]), strict=True
        ):
            errors = ridge(part.select(held_out)) - values[held_out].numpy()
            reached[str(penalty)] = float(np.square(errors).mean())  # not R², which of equal numbers is not defined
        best = float(min(reached, key=lambda name: reached[name]))
        whole = Standardized.of(layer_features, model.encoder.device)
        (ridge,) = fit_ridge(whole, values, [best])
        fitted[name] = ridge, whole, Fit(spec.seed, len(values), {"penalty": best}, reached)
    predicted: dict[str, list[NDArray[np.float64]]] = {name: [] for name in fitted}
    for number, test in enumerate(table.tests):
        opened = source.for_evaluation(test.index, spec, model.encoder, model.size, samples)
        features = cached_features(model, opened, layer, pool, spec)
        table.add_test(number, features)
        for name, (ridge, whole, _) in fitted.items():
            predicted[name].append(ridge(replace(whole, features=keep_on_device(features.layers[name], whole.device))))
    for name, (_, _, fit) in fitted.items():
        row = Row(model.name, [], layer=None if len(fitted) == 1 else name, weights=model.weights, fits=[fit], role=model.role)
        table.add(row, predicted[name])


class _Table:
    """Rows in the making: the checkpoint's predictions are what the others' are compared with."""

    def __init__(self, train: NumberedPart, tests: list[NumberedPart]) -> None:
        self.train, self.tests, self.rows = train, tests, list[Row]()
        self.test_data: list[TestData] = []
        self.present: list[NDArray[np.int64]] = []  # of each test part, the samples that can be read
        self.hashes = np.zeros(0, dtype=np.int64)  # of the training samples
        self._outcomes = CheckpointOutcomes[tuple[float, NDArray[np.float64]]](_compare)

    def add_test(self, number: int, features: Features) -> None:
        """Add what is known of a test part, once."""
        if len(self.test_data) == number:
            test = self.tests[number]
            duplicates = count_duplicates(self.hashes, features.hashes)
            self.present.append(features.rows)
            self.test_data.append(
                TestData(test.name, test.fingerprint(), len(test.values), duplicates, test.seen_in_pretraining)
            )

    def add(self, row: Row, predicted: list[NDArray[np.float64]]) -> None:
        """Add the rows of a model and layer, one for each test part, whose readable samples are predicted."""
        for number, (test, values) in enumerate(zip(self.tests, predicted, strict=True)):
            actual = test.values[self.present[number]]
            correlation, resamples = spearman(values, actual), resample_spearman(values, actual)
            comparisons = self._outcomes.compare(row.role, number, row.layer, (correlation, resamples))
            metrics = _metrics(values, actual, correlation, resamples)
            self.rows.append(replace(row, metrics=metrics, test=test.name, comparisons=comparisons))


def _compare(first: tuple[float, NDArray[np.float64]], second: tuple[float, NDArray[np.float64]]) -> Comparison:
    """Return the difference of two correlations, each with its resamples."""
    return compare_resamples(first[1], second[1], first[0] - second[0])


def _explained(predicted: NDArray[np.float64], actual: NDArray[np.float64]) -> float:
    """Return R²: the share of the variance that predictions explain, 0 for the mean."""
    total = float(np.square(actual - actual.mean()).sum())
    return 1 - float(np.square(actual - predicted).sum()) / total if total else 0.0


def _metrics(
    predicted: NDArray[np.float64], actual: NDArray[np.float64], correlation: float, resamples: NDArray[np.float64]
) -> list[Metric]:
    """Return both correlations, the first with its interval, R² and the mean absolute error."""
    constant = np.ptp(predicted) == 0 or np.ptp(actual) == 0
    pearson = 0.0 if constant else float(np.corrcoef(predicted, actual)[0, 1])
    n = len(actual)
    error = float(np.abs(predicted - actual).mean())
    return [
        Metric("Spearman", correlation, *interval_of_resamples(resamples), n=n, unit="correlation"),
        Metric("Pearson", pearson, n=n, unit="correlation"),
        Metric("R²", _explained(predicted, actual), n=n, unit="other"),
        Metric("mean absolute error", error, n=n, unit="other", higher_is_better=False),
    ]
