"""The curves of a run: what the numbers in `metrics.jsonl` are called, their units, and their chance levels."""

import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sslkit.engine.run_folder import TRAINING

Group = Literal["loss", "task", "health", "training", "speed"]

SHARE = "share"  # the unit that is shown in percent
_UNITS = {"accuracy": SHARE, "share": SHARE, "nats": "nats", "bits": "bits", "db": "dB", "px": "px"}  # by a name's last word
_KNOWN: dict[str, tuple[str, str, Group]] = {  # the engine's own, by the last part of the name: title, unit, group
    "loss": ("loss", "", "loss"),
    "rankme": ("effective rank of the features", "dimensions", "health"),
    "feature_deviation": ("deviation of the features", "", "health"),
    "feature_alignment": ("squared distance of two views", "", "health"),
    "uniformity": ("uniformity of the features", "", "health"),
    "teacher_entropy": ("entropy of the teacher", "nats", "health"),
    "teacher_deviation": ("deviation of the teacher's output", "", "health"),
    "online_knn": ("k-NN accuracy", SHARE, "health"),
    "lr": ("learning rate", "", "training"),
    "gradient_norm": ("gradient norm", "", "training"),
    "overflows": ("overflows of fp16", "steps", "training"),
    "epoch": ("epoch", "", "training"),
    "samples_per_second": ("speed", "samples/s", "speed"),
    "seconds": ("time", "s", "speed"),
    "memory": ("peak memory", "bytes", "speed"),
    "transform_share": ("time in the transform", SHARE, "speed"),
}


@dataclass(frozen=True)
class Curve:
    """One number of the log lines: its name there, what people call it, its unit, and what guessing reaches."""

    name: str
    title: str
    unit: str  # `share`, `nats`, ...; blank: a plain number
    group: Group
    chance: float | None = None

    def text(self, value: float) -> str:
        """Return a value as people read it: a share in percent, with its chance level: `accuracy 31% (chance 25%)`."""
        text = _number(value, self.unit)
        return text if self.chance is None else f"{text} (chance {_number(self.chance, self.unit)})"


def describe_curves(
    names: Iterable[str], chance: dict[str, float] | None = None, loss_terms: Collection[str] = ()
) -> dict[str, Curve]:
    """Return the curves of numbers by name; a name that is not known is a number of the task without a unit.

    In a joint task a name is that of the task, a point, and the metric's: `rotation.accuracy` is titled `rotation: accuracy`.
    The only term of a loss is left out: it repeats the loss.
    """
    levels = chance or {}
    left_out = {"step", "alarms", *(loss_terms if len(loss_terms) == 1 else ())} - {"loss"}
    return {name: _describe(name, levels.get(name), name in loss_terms) for name in names if name not in left_out}


def read_curves(folder: Path, names: Iterable[str]) -> dict[str, Curve]:
    """Return the curves of a run folder's logged numbers, by name."""
    return describe_curves(names, read_chance(folder), read_loss_terms(folder))


def read_chance(folder: Path) -> dict[str, float]:
    """Return the chance levels of a run, by metric; none if none is recorded, or not as it should be."""
    levels = _read_training(folder).get("chance")
    known = levels.items() if isinstance(levels, dict) else ()
    return {str(name): float(level) for name, level in known if isinstance(level, int | float)}


def read_loss_terms(folder: Path) -> list[str]:
    """Return the names of the terms of a run's loss; none if none is recorded, or not as it should be."""
    terms = _read_training(folder).get("loss_terms")
    return [str(term) for term in terms] if isinstance(terms, list) else []


def read_steps(folder: Path) -> int | None:
    """Return the step at which a run ends; None if it has not logged any yet, or it is not as it should be."""
    steps = _read_training(folder).get("steps")
    return steps if isinstance(steps, int) else None


def _read_training(folder: Path) -> dict[str, Any]:
    try:
        values = json.loads((folder / TRAINING).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def describe_metrics(metrics: dict[str, float], chance: dict[str, float]) -> list[str]:
    """Return metrics of a task in a few words each: `accuracy 31% (chance 25%)`."""
    curves = describe_curves(metrics, chance)
    return [f"{curves[name].title} {curves[name].text(value)}" for name, value in metrics.items()]


def _describe(name: str, chance: float | None, is_loss_term: bool) -> Curve:
    task, _, metric = name.rpartition(".")
    title, unit, group = _KNOWN.get(metric) or _describe_own(metric)
    if metric != "loss" and (is_loss_term or metric.endswith("_loss")):  # whatever it is called, it is no number of the task
        title, unit, group = metric.replace("_", " "), "", "loss"
    return Curve(name, f"{task}: {title}" if task else title, unit, group, chance)


def _describe_own(metric: str) -> tuple[str, str, Group]:
    """Return title, unit and group of a task's own metric: a unit is the last word of its name."""
    words = metric.split("_")
    unit = _UNITS.get(words[-1], "")
    if unit not in ("", SHARE) and len(words) > 1:
        words.pop()
    return " ".join(words), unit, "task"


def _number(value: float, unit: str) -> str:
    if unit != SHARE:
        return f"{value:.3g}" + (f" {unit}" if unit else "")
    digits = 0 if abs(value) >= 0.1 or value == 0 else 1 if abs(value) >= 0.001 else 3
    return f"{value:.{digits}%}"
