"""What a result means: a verdict and, if there is one, a reason, in plain sentences with the command to try next.

Each is chosen by the first of its rules that applies. A rule reads numbers, and facts that checkpoint and run have recorded;
none knows a task or a modality by name.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean

from sslkit.console import duration
from sslkit.contract.options import Spec
from sslkit.contract.result import Finding, Result, Role, Row
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.curves import describe_metrics, read_chance
from sslkit.engine.run_command import flag_words
from sslkit.engine.run_folder import METRICS, read_json_lines
from sslkit.evaluation.gain import Gain, gain_over
from sslkit.evaluation.next_steps import NextSteps
from sslkit.evaluation.notes import count
from sslkit.evaluation.trial import SCRATCH
from sslkit.specs.train import FEW_STEPS

_NEAR_CHANCE = 1.2  # times the chance level: 30% for four rotations
_RECENT = 20  # log lines whose mean accuracy counts
_NAMES = {"knn": "k-NN"}  # of verbs in a sentence, where it is not the word itself


@dataclass(frozen=True)
class Case:
    """What the rules read: a result, the pretrained checkpoint it is about, and how it was asked for."""

    result: Result
    checkpoint: Checkpoint
    spec: Spec
    by_distance: bool  # whether it compares features by their distances, as k-NN does
    can_finetune: bool  # whether fine-tuning reads the same labels

    @cached_property
    def next(self) -> NextSteps:
        """Return what writes commands."""
        return NextSteps(self.spec, self.checkpoint, self.result.verb)

    @cached_property
    def random(self) -> Row | None:
        """Return the row of the same network without pretraining."""
        return self._row("random")

    @cached_property
    def baseline(self) -> Row | None:
        """Return the row of the plainest features."""
        return self._row("baseline")

    @property
    def row(self) -> Row:
        """Return the row of the checkpoint."""
        row = self._row("checkpoint")
        assert row is not None  # every table begins with it
        return row

    @property
    def place(self) -> str:
        """Return to which test part and layer a verdict applies, if there are several."""
        same = [row for row in self.result.rows if row.role == "checkpoint"]
        several = {"": len({row.test for row in same}) > 1, "layer ": len({row.layer for row in same}) > 1}
        values = {"": self.row.test, "layer ": self.row.layer}
        return ", ".join(f"{name}{values[name]}" for name in values if several[name])

    def gain(self, other: Row) -> Gain:
        """Return how much better the checkpoint is than another row."""
        return gain_over(self.row, other)

    def _row(self, role: Role) -> Row | None:
        """Return the row of a role on the first test part; of several layers, the last one."""
        test = self.result.rows[0].test
        return next((row for row in reversed(self.result.rows) if (row.role, row.test) == (role, test)), None)


Rule = Callable[[Case], Finding | None]


def with_findings(
    result: Result, checkpoint: Checkpoint, spec: Spec, by_distance: bool = False, can_finetune: bool = True
) -> Result:
    """Return the result with what it means: a verdict, and a reason if there is one."""
    case = Case(result, checkpoint, spec, by_distance, can_finetune)
    verdict, reason = (next((finding for rule in rules if (finding := rule(case))), None) for rules in (VERDICTS, REASONS))
    if verdict is not None and case.place:
        verdict = replace(verdict, text=f"{case.place}: {verdict.text}")
    return replace(result, findings=[finding for finding in (verdict, reason) if finding is not None])


def nothing_to_compare(case: Case) -> Finding | None:
    """Find that neither random weights nor a baseline stand beside the checkpoint."""
    if case.random is not None or case.baseline is not None:
        return None
    text = "No baseline was evaluated, so this does not show whether pretraining helped."
    if "scratch" in type(case.spec).model_fields:
        return Finding("no-baselines", text, case.next.add_scratch)
    flags = list[str]()
    if "protocol" in case.spec.model_fields_set and isinstance(getattr(case.spec, "protocol", None), str):
        flags += flag_words("protocol", case.spec.model_dump()["protocol"])
    return Finding("no-baselines", text, case.next.evaluate(case.result.verb, *flags))


def not_above_random(case: Case) -> Finding | None:
    """Find that the checkpoint is no better than random weights, or than training from them."""
    if case.random is None or (gain := case.gain(case.random)).is_positive:
        return None
    name = _name(case.random)
    if gain.is_negative:
        text = f"Worse than {name} by {gain.amount()}{gain.interval()}."
    else:
        text = f"Not distinguishable from {name}: the difference is {gain.difference()}{gain.interval()}."
    return Finding("random", text, case.next.train_longer)


def not_above_baseline(case: Case) -> Finding | None:
    """Find that the plainest features of this modality do as well as the checkpoint's."""
    if case.baseline is None or (gain := case.gain(case.baseline)).is_positive:
        return None
    start = "" if case.random is None else f"Better than {_name(case.random)} by {case.gain(case.random).amount()}, but "
    if gain.is_negative:
        text = f"{start}worse than {_name(case.baseline)} by {gain.amount()}{gain.interval()}."
    else:
        text = f"{start}not distinguishable from {_name(case.baseline)}: {gain.difference()}{gain.interval()}."
    return Finding("baseline", text[0].upper() + text[1:], _next_evaluation(case) or case.next.train_longer)


def helped(case: Case) -> Finding | None:
    """Find that the checkpoint is better than all that stands beside it."""
    others = [row for row in (case.random, case.baseline) if row is not None]
    amounts = [f"{case.gain(row).amount()} better than {_name(row)}{case.gain(row).interval()}" for row in others]
    text = f"Pretraining helped: {' and '.join(amounts)}."
    command = _next_evaluation(case) or case.next.report(Path(case.result.checkpoint))
    return Finding("helped", text, command)


def few_steps(case: Case) -> Finding | None:
    """Find that pretraining was too short, unless it began with weights that were trained before."""
    metadata, steps = case.checkpoint.metadata, int(case.checkpoint.metadata["step"])
    began = any(spec.get(name) for name in ("pretrained", "init") for spec in (case.next.of_checkpoint, case.next.recorded))
    if steps >= FEW_STEPS or began or "classes" in metadata:  # which fine-tuning records
        return None
    seconds = _read_values(case.checkpoint.path.parent, "seconds")[-1:]
    time = f"; {case.next.longer:,} take about {duration(case.next.longer * seconds[0] / steps)}" if seconds and steps else ""
    text = f"Pretrained for only {count(steps, 'step')}, too few to learn much{time}."
    return Finding("few-steps", text, case.next.train_longer)


def answers_by_chance(case: Case) -> Finding | None:
    """Find that pretext accuracy is at chance level."""
    folder = case.checkpoint.path.parent
    levels = {name: level for name, level in read_chance(folder).items() if name.rpartition(".")[2] == "accuracy"}
    reached = {name: mean(values[-_RECENT:]) for name in levels if (values := _read_values(folder, name))}
    if not reached or any(value > _NEAR_CHANCE * levels[name] for name, value in reached.items()):
        return None
    text = (
        f"Pretext accuracy is at chance level: {', '.join(describe_metrics(reached, levels))}. "
        "The data may not hold the answer, or training was too short."
    )
    return Finding("chance", text, case.next.on_checkpoint("preview"))


def distances_underestimate(case: Case) -> Finding | None:
    """Find that features are compared by their distances, whose task predicts hidden parts of its input."""
    if not case.by_distance or not case.checkpoint.metadata.get("masked"):
        return None
    name = _NAMES.get(case.result.verb, case.result.verb.capitalize())
    text = f"{name} underestimates masked pretraining; a linear probe or fine-tuning is a fairer test."
    return Finding("distances", text, case.next.evaluate("probe"))


def _read_values(folder: Path, name: str) -> list[float]:
    """Return the values of a metric in a run's log, none if it is not there."""
    lines = [line for line in read_json_lines(folder / METRICS) if isinstance(line, dict)]
    return [float(line[name]) for line in lines if isinstance(line.get(name), int | float)]


def _name(row: Row) -> str:
    """Return what a row stands for in a sentence: without the settings that follow a baseline's name."""
    if row.model.startswith(SCRATCH):
        return f"training {row.model}"
    return row.model.partition(",")[0] if row.role == "baseline" else row.model


def _next_evaluation(case: Case) -> str:
    """Return the command of the next evaluation that says more about the features; nothing if there is none."""
    if case.by_distance:
        return case.next.evaluate("probe")
    has_labels = case.result.verb != "finetune" and bool(case.result.data.train) and case.can_finetune
    if has_labels and case.next.can_finetune:
        return case.next.evaluate("finetune", "--scratch")
    return ""


VERDICTS: tuple[Rule, ...] = (nothing_to_compare, not_above_random, not_above_baseline, helped)
REASONS: tuple[Rule, ...] = (few_steps, answers_by_chance, distances_underestimate)
