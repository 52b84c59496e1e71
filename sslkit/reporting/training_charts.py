"""The charts of a run's training: which numbers of its log share a chart, and how each is read. Nothing here imports torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from sslkit.engine.curves import SHARE, Curve
from sslkit.reporting.charts import Axes, Series, line_chart

_NOTES = {
    "rankme": "RankMe: how many dimensions the features span. A fall to a quarter means collapse.",
    "feature_deviation": "1: features spread evenly; 0: all samples look alike.",
    "teacher_entropy": "0: the teacher gives every sample the same answer.",
    "online_knn": "Measured during training, on a small part of the data.",
    "uniformity": "Lower: features spread more evenly.",
    "feature_alignment": "Between features of two views of a sample; 0: the same.",
}
_MAIN_HEALTH = ("rankme", "feature_deviation", "teacher_entropy", "online_knn")
_UNPLOTTED = ("epoch", "seconds")


@dataclass(frozen=True)
class TrainingChart:
    """A chart: its axes, and by metric the names of its lines; `scale` turns logged values into those of the axis."""

    axes: Axes
    names: dict[str, str] = field(default_factory=dict)
    main: bool = True  # of those that are read first
    scale: float = 1.0

    def draw(self, lines: Sequence[Mapping[str, Any]]) -> str:
        """Return the chart of logged lines, nothing if they do not hold its numbers."""
        series = []
        for metric, name in self.names.items():
            points = [(line["step"] + 1, self.scale * line[metric]) for line in lines if _is_number(line.get(metric))]
            if points:
                series.append(Series(name, [step for step, _ in points], [value for _, value in points]))
        return line_chart(series, self.axes) if series else ""

    def to_json(self) -> dict[str, Any]:
        """Return what a script needs to draw the chart."""
        axes = self.axes
        described = {
            "title": axes.title,
            "unit": axes.unit,
            "note": axes.note,
            "share": axes.share,
            "levels": dict(axes.levels),
        }
        return {**described, "log": axes.may_log, "names": self.names, "main": self.main, "scale": self.scale}


def plan_charts(curves: Mapping[str, Curve]) -> list[TrainingChart]:
    """Return the charts of curves by metric: losses together, the task's metrics, health, then the rest."""
    total_first = sorted(curves.values(), key=lambda curve: curve.name != "loss")
    losses = {curve.name: _capital(curve.title) for curve in total_first if curve.group == "loss"}
    charts = [TrainingChart(Axes("Loss", _same_unit(curves, losses), may_log=True), losses)] if losses else []
    ranks = {name: rank for rank, name in enumerate(_MAIN_HEALTH)}
    ordered = [curve for curve in curves.values() if curve.group == "task"]
    ordered += sorted(
        (curve for curve in curves.values() if curve.group == "health"), key=lambda curve: ranks.get(curve.name, len(ranks))
    )
    ordered += [curve for curve in curves.values() if curve.group in ("training", "speed")]
    return charts + [_plan(curve) for curve in ordered if curve.name not in _UNPLOTTED]


def _plan(curve: Curve) -> TrainingChart:
    """Return the chart of one curve."""
    in_bytes = curve.unit == "bytes"
    axes = Axes(
        title=_capital(curve.title),
        unit="GB" if in_bytes else "" if curve.unit == SHARE else curve.unit,
        note=_NOTES.get(curve.name, ""),
        share=curve.unit == SHARE,
        levels={} if curve.chance is None else {"chance": curve.chance},
    )
    main = curve.group == "task" or curve.name in _MAIN_HEALTH
    return TrainingChart(axes, {curve.name: axes.title}, main, 1e-9 if in_bytes else 1.0)


def _same_unit(curves: Mapping[str, Curve], names: Mapping[str, str]) -> str:
    units = {curves[name].unit for name in names}
    return units.pop() if len(units) == 1 else ""


def _capital(title: str) -> str:
    return title[:1].upper() + title[1:]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
