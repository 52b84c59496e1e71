"""What a result means: a verdict and, if there is one, a reason, in plain sentences with the command to try next.

Each is chosen by the first of its rules that applies. A rule reads numbers, and facts that checkpoint and run have recorded;
none knows a task or a modality by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

from sslkit.console import duration
from sslkit.contract.options import Spec
from sslkit.contract.result import Finding, Metric, Result, Role, Row
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.run_folder import METRICS, read_json_lines
from sslkit.evaluation.next_steps import NextSteps
from sslkit.specs.train import FEW_STEPS


@dataclass(frozen=True)
class Gain:
    """How much better one row is than another, by the headline, with the 95% interval of the difference if there is one."""

    value: float
    low: float | None
    high: float | None
    metric: Metric

    @property
    def is_positive(self) -> bool:
        """Return whether the first row is better: by more than chance, if there is an interval."""
        return (self.value if self.low is None else self.low) > 0

    @property
    def is_negative(self) -> bool:
        """Return whether the first row is worse: by more than chance, if there is an interval."""
        return (self.value if self.high is None else self.high) < 0

    def text(self, sign: str = "") -> str:
        """Return its value; `sign` is that of Python's format: blank, or + for both signs."""
        value = self.value if sign else abs(self.value)
        return f"{100 * value:{sign}.1f} points" if self.metric.unit == "share" else f"{value:{sign}.3f}"

    def interval(self) -> str:
        """Return the interval of the absolute value in brackets where it has one sign, else of the value."""
        if self.low is None or self.high is None:
            return ""
        low, high = (-self.high, -self.low) if self.is_negative else (self.low, self.high)
        share = self.metric.unit == "share"
        low_text, high_text = (f"{100 * end:.1f}" if share else f"{end:.3f}" for end in (low, high))
        return f" (95% interval {low_text} to {high_text})"


def gain_over(row: Row, other: Row) -> Gain:
    """Return how much better a row is than another of the same test part: paired over samples where that was recorded."""
    ours, theirs = row.headline, other.headline
    paired = other.comparisons.get(row.model)
    low: float | None
    high: float | None
    if paired is not None and None not in (paired.difference, paired.low, paired.high):
        value, low, high = (-(end or 0.0) for end in (paired.difference, paired.high, paired.low))
    elif ours.low is not None and ours.high is not None:  # wider than a paired one: each end against the other's far end
        value = ours.value - theirs.value
        low = ours.low - (theirs.value if theirs.high is None else theirs.high)
        high = ours.high - (theirs.value if theirs.low is None else theirs.low)
    else:
        value, low, high = ours.value - theirs.value, None, None
    if ours.higher_is_better:
        return Gain(value, low, high, ours)
    return Gain(-value, None if high is None else -high, None if low is None else -low, ours)


@dataclass(frozen=True)
class Case:
    """What the rules read: a result, the pretrained checkpoint it is about, and how it was asked for."""

    result: Result
    checkpoint: Checkpoint
    spec: Spec
    by_distance: bool  # whether it compares features by their distances, as k-NN does

    @property
    def next(self) -> NextSteps:
        """Return what writes commands."""
        return NextSteps(self.spec, self.checkpoint)

    @cached_property
    def random(self) -> Row | None:
        """Return the row of the same network without pretraining."""
        return self._row("random")

    @cached_property
    def baseline(self) -> Row | None:
        """Return the row of the plainest features."""
        return self._row("baseline")

    def gain(self, other: Row) -> Gain:
        """Return how much better the checkpoint is than another row."""
        row = self._row("checkpoint")
        assert row is not None
        return gain_over(row, other)

    def _row(self, role: Role) -> Row | None:
        """Return the row of a role on the first test part; of several layers, the last one."""
        test = self.result.rows[0].test
        return next((row for row in reversed(self.result.rows) if (row.role, row.test) == (role, test)), None)


Rule = Callable[[Case], Finding | None]


def with_findings(result: Result, checkpoint: Checkpoint, spec: Spec, by_distance: bool = False) -> Result:
    """Return the result with what it means: a verdict, and a reason if there is one."""
    case = Case(result, checkpoint, spec, by_distance)
    chosen = [next((finding for rule in rules if (finding := rule(case))), None) for rules in (VERDICTS, REASONS)]
    return replace(result, findings=[finding for finding in chosen if finding is not None])


def nothing_to_compare(case: Case) -> Finding | None:
    """Find that neither random weights nor a baseline stand beside the checkpoint."""
    if case.random is not None or case.baseline is not None:
        return None
    fields, flags = type(case.spec).model_fields, list[str]()
    if "protocol" in case.spec.model_fields_set and isinstance(getattr(case.spec, "protocol", None), str):
        flags += ["--protocol", getattr(case.spec, "protocol")]
    if "scratch" in fields:
        flags.append("--scratch")
    text = "Whether pretraining helped is not measured: nothing stands beside this number."
    return Finding("no-baselines", text, case.next.evaluate(case.result.verb, *flags))


def not_above_random(case: Case) -> Finding | None:
    """Find that the checkpoint is no better than random weights, or than training from them."""
    if case.random is None or (gain := case.gain(case.random)).is_positive:
        return None
    name = _name(case.random)
    if gain.is_negative:
        text = f"Worse than {name}, by {gain.text()}{gain.interval()}."
    else:
        text = f"Not distinguishable from {name}: the difference is {gain.text('+')}{gain.interval()}."
    return Finding("random", text, case.next.train_longer())


def not_above_baseline(case: Case) -> Finding | None:
    """Find that the plainest features of this modality do as well as the checkpoint's."""
    if case.baseline is None or (gain := case.gain(case.baseline)).is_positive:
        return None
    start = "" if case.random is None else f"Better than {_name(case.random)} by {case.gain(case.random).text()}, but "
    if gain.is_negative:
        text = f"{start}worse than {_name(case.baseline)}, by {gain.text()}{gain.interval()}."
    else:
        text = f"{start}not distinguishable from {_name(case.baseline)}: {gain.text('+')}{gain.interval()}."
    return Finding("baseline", text[0].upper() + text[1:], _next_evaluation(case) or case.next.train_longer())


def helped(case: Case) -> Finding | None:
    """Find that the checkpoint is better than all that stands beside it."""
    others = [row for row in (case.random, case.baseline) if row is not None]
    amounts = [f"{case.gain(row).text()} above {_name(row)}{case.gain(row).interval()}" for row in others]
    text = f"Pretraining helped: {' and '.join(amounts)}."
    command = _next_evaluation(case) or case.next.report(Path(case.result.checkpoint))
    return Finding("helped", text, command)


def few_steps(case: Case) -> Finding | None:
    """Find that pretraining was too short, unless it started from weights that somebody else trained."""
    metadata, steps = case.checkpoint.metadata, int(case.checkpoint.metadata["step"])
    continued = metadata.get("pretrained_by") or metadata.get("spec", {}).get("pretrained") or case.next.recorded.get("init")
    if steps >= FEW_STEPS or continued:
        return None
    seconds = _seconds_per_step(case.checkpoint)
    longer = f"{case.next.longer:,} would take about {duration(case.next.longer * seconds)}" if seconds else ""
    text = f"Pretrained for only {steps:,} steps, too few to learn much{f'; {longer}' if longer else ''}."
    return Finding("few-steps", text, case.next.train_longer())


VERDICTS: tuple[Rule, ...] = (nothing_to_compare, not_above_random, not_above_baseline, helped)
REASONS: tuple[Rule, ...] = (few_steps,)
