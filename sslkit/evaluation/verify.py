"""`sslkit verify`: tell whether two samples have the same label, such as a speaker that nobody has seen, by their features."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Comparison, Data, Metric, Result, Row, TestData
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import Model, compare_models
from sslkit.evaluation.splits import (
    TestPart,
    annotations,
    check_channels,
    check_labeled,
    check_run_data,
    labeled_fingerprint,
    named_data,
    source_of,
    test_location,
)
from sslkit.evaluation.statistics import RESAMPLES, adjust_comparisons, compare_resamples, interval_of_resamples
from sslkit.specs.evaluation import VerifySpec

_PIXELS = 32  # a side, of raw pixels


@dataclass(frozen=True)
class Trials:
    """Pairs of samples: which two, and whether they have the same label."""

    first: NDArray[np.int64]  # [P]
    second: NDArray[np.int64]
    same: NDArray[np.bool_]
    ends: NDArray[np.int64] | None = None  # in an order: how many pairs lie below each threshold between different scores

    @classmethod
    def of(cls, labels: NDArray[np.int64], groups: NDArray[np.int64] | None) -> "Trials":
        """Return all pairs of samples, but for those of one group."""
        first, second = np.triu_indices(len(labels), k=1)
        if groups is not None:
            apart = groups[first] != groups[second]
            first, second = first[apart], second[apart]
        return cls(first, second, labels[first] == labels[second])

    def sorted_by(self, features: Tensor) -> "Trials":
        """Return the trials in the order of the cosine of features `[N, D]`, the least similar first."""
        unit = F.normalize(features.double(), dim=1)
        # Rounded, so that pairs that are equally similar are so to the last digit.
        scores = (unit @ unit.T).round(decimals=12).numpy()[self.first, self.second]
        order = np.argsort(scores, kind="stable")
        ends = np.flatnonzero(np.diff(scores[order])) + 1
        return Trials(self.first[order], self.second[order], self.same[order], np.concatenate([[0], ends, [len(order)]]))

    def equal_error_rate(self, counts: NDArray[np.int64] | None = None) -> float:
        """Return the rate at which as many pairs of one label are rejected as of two are accepted, given an order.

        Between the two thresholds around it, rates are interpolated. `counts` `[N]` tells how often each sample is drawn, by
        default once.
        """
        assert self.ends is not None, "sort the trials first"
        weight = np.ones(len(self.same)) if counts is None else (counts[self.first] * counts[self.second]).astype(np.float64)
        rejected, below = (np.append(0, np.cumsum(weight * part))[self.ends] for part in (self.same, ~self.same))
        if not rejected[-1] or not below[-1]:
            return 0.5  # the resample has pairs of one kind only
        rejected, accepted = rejected / rejected[-1], 1 - below / below[-1]
        place = int(np.argmax(rejected >= accepted))
        before, after = accepted[place - 1] - rejected[place - 1], rejected[place] - accepted[place]
        return float(rejected[place - 1] + before / (before + after) * (rejected[place] - rejected[place - 1]))

    def resample(self, samples: int) -> NDArray[np.float64]:
        """Return equal error rates of resamples of the samples, given an order; the same draws for every model."""
        random = np.random.default_rng(0)
        draws = (np.bincount(random.integers(samples, size=samples), minlength=samples) for _ in range(RESAMPLES))
        return np.array([self.equal_error_rate(counts) for counts in draws])


class Verify(Evaluation):
    """Tell whether two samples share a label, such as an unknown speaker, by cosine: equal error rate."""

    verb = "verify"
    Options = VerifySpec
    protocols = (
        Protocol(
            "verify/eer-v1",
            "equal error rate of the cosine over all pairs of at most 500 samples, but for pairs of one --group",
            {"samples": 500},
            deterministic=True,
        ),
    )

    def run(self, spec: VerifySpec) -> Result:
        """Measure a checkpoint, random weights and the plainest features on labels that nothing is fitted to.

        Raises SslkitError for data without labels, and where all or none of the pairs have the same.
        """
        started_at = time.monotonic()
        checkpoint = read_model(spec.ckpt, part=spec.part)
        source_of(checkpoint)
        models = compare_models(checkpoint, spec, choose_device(spec.device)[0], _PIXELS)
        tests, spec = _find_tests(spec, checkpoint)
        rows: list[Row] = []
        notes: list[str] = []
        outcomes = CheckpointOutcomes[tuple[float, NDArray[np.float64]]](_compare)
        for number, test in enumerate(tests):
            for model in models:
                measured = _measure(model, test, spec, checkpoint)
                for layer, (metric, outcome) in measured.layers.items():
                    comparisons = outcomes.compare(model.role, number, layer, outcome)
                    row = Row(model.name, [metric], test=test.name, layer=layer, comparisons=comparisons)
                    rows.append(replace(row, weights=model.weights, role=model.role))
            labels = test.index.labels
            assert labels is not None
            same, count = int(measured.trials.same.sum()), len(measured.trials.same)
            notes.append(
                f"{test.name}: {same:,} pairs of one label and {count - same:,} of two, of {len(test.index):,} samples and "
                f"{len(np.unique(labels))} labels; chance is 50%."
            )
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id if spec.samples == self.protocols[0].settings["samples"] else None,
            settings={"samples": spec.samples, "layer": spec.layer, "pool": spec.pool, **annotations(spec)},
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=Data(
                tests=[
                    TestData(
                        test.name,
                        labeled_fingerprint(test.index),
                        len(test.index),
                        seen_in_pretraining=test.seen_in_pretraining,
                    )
                    for test in tests
                ]
            ),
            rows=adjust_comparisons(rows),
            notes=notes,
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, by_distance=True, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def verify(spec: VerifySpec) -> Result:
    """Measure how well a checkpoint's features tell whether two samples share a label, as `sslkit verify` does."""
    return Verify().run(spec)


@dataclass(frozen=True)
class Measured:
    """What a model reaches on a test part: by layer, None for a single one, the metric and its resamples."""

    trials: Trials
    layers: dict[str | None, tuple[Metric, tuple[float, NDArray[np.float64]]]]


def _find_tests(spec: VerifySpec, checkpoint: Checkpoint) -> tuple[list[TestPart], VerifySpec]:
    """Return the labeled parts to measure on, of `--data` the last one, and the spec with the run's own data filled in."""
    source, pretrained_on = source_of(checkpoint), checkpoint.metadata["data"]
    data, from_run, spec = named_data(spec, checkpoint)
    located = find_parts(data, source.kind)
    named = [(test, test_location(test, source.kind)[1], "test") for test in spec.test]
    tests = []
    for name, location, flag in named or [(data, list(located.values())[-1], "data")]:
        with renamed_flags({"data": flag}):
            index = check_labeled(source.read_index(location, spec), "data", several=False, split=False)
            check_channels(index, checkpoint)
        pretrained = index.fingerprint() == pretrained_on
        check_run_data(data, from_run and not spec.test and len(located) == 1, pretrained)
        say_once(f"test part: {name}")
        if len(index) > spec.samples:
            index = index.subset(np.linspace(0, len(index) - 1, spec.samples).round().astype(np.int64))
        tests.append(TestPart(name, index, pretrained))
    return tests, spec


def _measure(model: Model, test: TestPart, spec: VerifySpec, checkpoint: Checkpoint) -> Measured:
    """Return the equal error rates of a model; raises SslkitError where all or none of the pairs have the same label."""
    layer, pool = model.adapt(spec.layer, spec.pool)
    samples = source_of(checkpoint).for_evaluation(test.index, spec, model.encoder, model.size)
    features = cached_features(model, samples, layer, pool, spec)
    assert test.index.labels is not None
    groups = None if test.index.groups is None else test.index.groups[features.rows]
    trials = Trials.of(test.index.labels[features.rows], groups)
    if len(trials.same) == 0 or trials.same.all() or not trials.same.any():
        kind = "all" if trials.same.any() else "none"
        hint = "use more --samples" if kind == "none" else ""
        raise SslkitError(f"{kind} of the {len(trials.same):,} pairs in {test.name} have the same label", hint, flag="label")
    layers = {}
    for name, values in features.layers.items():
        ordered = trials.sorted_by(values.float().cpu())
        rate, resamples = ordered.equal_error_rate(), ordered.resample(len(features.rows))
        interval = interval_of_resamples(resamples)
        metric = Metric("EER", rate, *interval, n=len(trials.same), unit_of_n="pairs", higher_is_better=False)
        layers[None if len(features.layers) == 1 else name] = metric, (rate, resamples)
    return Measured(trials, layers)


def _compare(first: tuple[float, NDArray[np.float64]], second: tuple[float, NDArray[np.float64]]) -> Comparison:
    return compare_resamples(first[1], second[1], first[0] - second[0])
