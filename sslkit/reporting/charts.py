"""Charts as inline SVG: lines, points with names, values with intervals. Colors come from the page's style sheet.

A chart is small, so that several stand side by side and one fills a phone; its legend is text of the page.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sslkit.reporting.page import text
from sslkit.reporting.scales import Scale, fit_scale, moving_average, number_text, spans_decades

COLORS = 8  # of series; more begin again
STEP = "step"  # what the places of most charts are

_WIDTH, _HEIGHT = 360, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 42, 350, 10, 176  # edges of the plot
_NOISY = 40  # values from which on a smoothed line is drawn over them
_MOST = 1500  # values of a line


@dataclass(frozen=True)
class Series:
    """Values by place, with a name."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True)
class Axes:
    """What a chart is about: title, unit, how to read it, and lines to compare with, such as chance, by name."""

    title: str
    unit: str = ""
    note: str = ""
    x_label: str = STEP
    share: bool = False  # the values are shares of 1, in percent
    may_log: bool = False
    levels: Mapping[str, float] = field(default_factory=dict)


def line_chart(series: Sequence[Series], axes: Axes) -> str:
    """Draw series as lines, smoothed over the faint values themselves where there are many."""
    log = axes.may_log and all(spans_decades(each.y) for each in series)
    values = [value for each in series for value in each.y]
    x = fit_x([place for each in series for place in each.x])
    y = fit_scale([*values, *axes.levels.values()], _BOTTOM, _TOP, log)
    parts = _frame(x, y, axes)
    for number, each in enumerate(series):
        step = -(-len(each.y) // _MOST)
        places, heights = [x.place(value) for value in each.x[::step]], each.y[::step]
        noisy = len(heights) >= _NOISY
        if noisy:
            parts.append(_line(places, [y.place(value) for value in heights], f"raw c{number % COLORS}"))
            heights = moving_average(heights)
        parts.append(_line(places, [y.place(value) for value in heights], f"line c{number % COLORS}"))
        if len(heights) == 1:
            parts.append(_dot(places[0], y.place(heights[0]), f"c{number % COLORS}", each.name))
    legend = [(each.name, number_text(each.y[-1], axes.share)) for each in series]
    return _figure(parts, axes, legend, _describe_lines(series, axes), log)


def scatter_chart(groups: Mapping[str, Sequence[tuple[float, float, str]]], axes: Axes) -> str:
    """Draw named points (x, y, name), a color for each group."""
    points = [point for group in groups.values() for point in group]
    x = fit_x([place for place, _, _ in points])
    y = fit_scale([height for _, height, _ in points], _BOTTOM, _TOP)
    parts = _frame(x, y, axes)
    for number, group in enumerate(groups.values()):
        for place, height, name in group:
            left, top = x.place(place), y.place(height)
            end = left > (_LEFT + _RIGHT) / 2
            anchor = ' text-anchor="end"' if end else ""
            parts.append(_dot(left, top, f"c{number % COLORS}", name))
            parts.append(f'<text x="{left + (-7 if end else 7):.1f}" y="{top + 4:.1f}"{anchor}>{text(name)}</text>')
    sentence = "; ".join(f"{name} {number_text(height, axes.share)} at {number_text(place)}" for place, height, name in points)
    return _figure(parts, axes, [(name, "") for name in groups], sentence, log=False)


def interval_chart(series: Mapping[str, Sequence[tuple[float, float, float, float]]], axes: Axes) -> str:
    """Draw values with intervals (place, value, low, high) by name."""
    rows = [row for each in series.values() for row in each]
    x = fit_x([row[0] for row in rows])
    y = fit_scale([number for row in rows for number in row[2:]], _BOTTOM, _TOP)
    parts = _frame(x, y, axes)
    for number, each in enumerate(series.values()):
        color = f"c{number % COLORS}"
        places = [x.place(row[0]) + 2 * number for row in each]  # beside each other where intervals overlap
        parts.append(_line(places, [y.place(row[1]) for row in each], f"line {color}"))
        for place, (_, value, low, high) in zip(places, each, strict=True):
            parts.append(f'<path class="line {color}" d="M{place:.1f} {y.place(low):.1f}V{y.place(high):.1f}"/>')
            parts.append(_dot(place, y.place(value), color, number_text(value, axes.share)))
    legend = [(name, number_text(each[-1][1], axes.share)) for name, each in series.items()]
    return _figure(parts, axes, legend, "", log=False)


def fit_x(values: Sequence[float]) -> Scale:
    """Return the horizontal scale of values: from the smallest to the largest."""
    low, high = min(values), max(values)
    room = 0.5 if low == high else 0.0
    return Scale(low - room, high + room, _LEFT, _RIGHT)


def _frame(x: Scale, y: Scale, axes: Axes) -> list[str]:
    """Return grid, axis and the lines to compare with."""
    parts = []
    for tick in y.ticks(6):
        height = y.place(tick)
        parts.append(f'<path class="grid" d="M{_LEFT} {height:.1f}H{_RIGHT}"/>')
        label = number_text(tick, axes.share)
        parts.append(f'<text x="{_LEFT - 6}" y="{height + 4:.1f}" text-anchor="end">{label}</text>')
    ticks = [tick for tick in x.ticks(5) if axes.x_label != STEP or tick == int(tick)]
    for tick in ticks:
        place = x.place(tick)
        if axes.x_label == STEP and place < _LEFT + 12:  # where the word stands
            continue
        anchor = "end" if place > _RIGHT - 10 else "middle"
        parts.append(f'<text x="{place:.1f}" y="{_BOTTOM + 15}" text-anchor="{anchor}">{number_text(tick)}</text>')
    if axes.x_label == STEP:  # there is room for a short word beside the numbers
        parts.append(f'<text x="{_LEFT - 6}" y="{_BOTTOM + 15}" text-anchor="end">{STEP}</text>')
    parts.append(f'<path class="axis" d="M{_LEFT} {_BOTTOM}H{_RIGHT}"/>')
    for name, value in axes.levels.items():
        height = y.place(value)
        below = height + 13 if height < _TOP + 16 else height - 4
        parts.append(f'<path class="level" d="M{_LEFT} {height:.1f}H{_RIGHT}"/>')
        label = f"{text(name)} {number_text(value, axes.share)}"
        parts.append(f'<text class="level" x="{_RIGHT}" y="{below:.1f}" text-anchor="end">{label}</text>')
    return parts


def _figure(parts: list[str], axes: Axes, legend: list[tuple[str, str]], description: str, log: bool) -> str:
    """Return the chart with its caption: title, unit, the last value of each series."""
    unit = f" <small>{text(axes.unit)}</small>" if axes.unit else ""
    scale = " <small>(log scale)</small>" if log else ""
    if len(legend) == 1:
        value, entries = f"<output>{legend[0][1]}</output>", ""
    else:
        items = "".join(
            f'<li class="c{number % COLORS}">{text(name)} <output>{value}</output></li>'
            for number, (name, value) in enumerate(legend)
        )
        value, entries = "", f"<ul>{items}</ul>"
    note = f"<p>{text(axes.note)}</p>" if axes.note else ""
    label = f'<text x="{_RIGHT}" y="{_HEIGHT}" text-anchor="end">{text(axes.x_label)}</text>' if axes.x_label != STEP else ""
    return (
        f'<figure class="chart"><figcaption><span><b>{text(axes.title)}</b>{unit}{scale}</span>{value}{entries}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 4 if label else _HEIGHT - 6}" role="img"><title>{text(axes.title)}</title>'
        f"<desc>{text(description)}</desc>{''.join(parts)}{label}</svg>{note}</figure>"
    )


def _describe_lines(series: Sequence[Series], axes: Axes) -> str:
    """Return in words where each line begins and ends."""
    sentences = []
    for each in series:
        first, last = number_text(each.y[0], axes.share), number_text(each.y[-1], axes.share)
        start, end = number_text(each.x[0]), number_text(each.x[-1])
        sentences.append(f"{each.name}: {first} at {axes.x_label} {start}, {last} at {axes.x_label} {end}.")
    return " ".join(sentences)


def _line(x: Sequence[float], y: Sequence[float], kind: str) -> str:
    points = " ".join(f"{place:.1f},{height:.1f}" for place, height in zip(x, y, strict=True))
    return f'<polyline class="{kind}" points="{points}"/>'


def _dot(x: float, y: float, kind: str, name: str) -> str:
    return f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4"><title>{text(name)}</title></circle>'
