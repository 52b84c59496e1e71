"""Charts as PNG: lines, points with names, values with intervals."""

import io
from typing import Any

Points = list[tuple[float, float, str]]  # x, y, name


def lines(curves: dict[str, tuple[list[float], list[float]]], xlabel: str) -> bytes:
    """Draw curves (x, y) by name."""
    figure, axes = _plot(5, 3.2)
    for name, (x, y) in curves.items():
        axes.plot(x, y, label=_plain(name), linewidth=1.2, marker="." if len(x) < 10 else None)
    axes.set(xlabel=xlabel)
    axes.locator_params(axis="x", integer=True)
    if len(curves) > 1:
        axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def points(groups: dict[str, Points], xlabel: str, ylabel: str) -> bytes:
    """Draw named points, a color for each group."""
    figure, axes = _plot(5, 3.6)
    for group, inside in groups.items():
        axes.scatter([x for x, _, _ in inside], [y for _, y, _ in inside], label=_plain(group))
        for x, y, name in inside:
            axes.annotate(_plain(name), (x, y), xytext=(5, 3), textcoords="offset points", fontsize=8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.margins(0.2)
    axes.legend(fontsize=8, frameon=False)
    return _png(figure)


def intervals(series: dict[str, list[tuple[str, float, float, float]]], xlabel: str, ylabel: str) -> bytes:
    """Draw values with intervals, (number, value, low, high), by name."""
    figure, axes = _plot(7, 4)
    for name, rows in series.items():
        numbers, values = [int(row[0]) for row in rows], [row[1] for row in rows]
        spread = [[row[1] - row[2] for row in rows], [row[3] - row[1] for row in rows]]
        axes.errorbar(numbers, values, yerr=spread, label=_plain(name), capsize=3, marker="o", linewidth=1.2)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=7, frameon=False)
    return _png(figure)


def _plain(name: str) -> str:
    """Return a name in which matplotlib reads no formula."""
    return name.replace("$", r"\$")


def _plot(width: float, height: float) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(width, height), layout="constrained")
    axes.locator_params(nbins=5)
    return figure, axes


def _png(figure: Any) -> bytes:
    from matplotlib import pyplot

    with io.BytesIO() as stream:
        figure.savefig(stream, format="png", dpi=110)
        pyplot.close(figure)
        return stream.getvalue()
