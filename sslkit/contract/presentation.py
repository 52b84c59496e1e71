"""Results as people read them: the cells of a table, and HTML for a notebook."""

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sslkit.contract.result import Metric, Result, Row

# Colors are the notebook's, which may be dark.
_CELL = "padding:.2em .8em;text-align:{};color:inherit;background:transparent;white-space:nowrap"
_TEXT = "margin:.3em 0;max-width:60em;color:inherit"
_SMALL = f"{_TEXT};opacity:.7;font-size:.85em"


def table_cells(result: "Result") -> tuple[list[str], list[list[str]]]:
    """Return titles, and for each model, layer and test part a line of cells; a column that would say nothing is left out."""
    rows = result.rows
    tests = len({row.test for row in rows}) > 1
    layers = len({row.layer for row in rows} - {None, "last"}) > 0
    columns = {metric.name: _title(metric, rows) for row in rows for metric in row.metrics}
    titles = ["model", *(["test"] if tests else []), *(["layer"] if layers else []), *columns.values()]
    lines = []
    for row in rows:
        cells = [row.model, *([row.test] if tests else []), *([row.layer or ""] if layers else [])]
        lines.append(cells + [metric_text(row.metric(name)) for name in columns])
    return titles, lines


def metric_text(metric: "Metric | None") -> str:
    """Return a value with its interval, nothing for a metric that a row lacks."""
    if metric is None:
        return ""
    interval = metric.interval_text()
    return metric.text() + (f" ({interval})" if interval else "")


def is_text(title: str) -> bool:
    """Return whether a column holds names, which begin at the left, and no numbers."""
    return title in ("model", "test")


def to_html(result: "Result") -> str:
    """Return the headline, the table, whose first line is the checkpoint's, and the notes; readable on white and on black."""
    titles, lines = table_cells(result)
    headline = result.headline
    summary = f"{result.title}: {headline.name} {metric_text(headline)} on {headline.n:,} {headline.unit_of_n}"
    head = "".join(_cell("th", title, title) for title in titles)
    body = "".join(f"<tr>{_line(titles, cells, strong=not place)}</tr>" for place, cells in enumerate(lines))
    table = f'<table style="border-collapse:collapse;margin:.3em 0;color:inherit"><tr>{head}</tr>{body}</table>'
    notes = "".join(f'<p style="{_TEXT}">{escape(note)}</p>' for note in result.notes)
    source = f'<p style="{_SMALL}">{escape(result.checkpoint)}, weights {escape(result.weights)}</p>'
    return f'<div><p style="{_TEXT};font-weight:bold">{escape(summary)}</p>{table}{notes}{source}</div>'


def _line(titles: list[str], cells: list[str], strong: bool) -> str:
    return "".join(_cell("td", title, cell, strong) for title, cell in zip(titles, cells, strict=True))


def _cell(tag: str, title: str, text: str, strong: bool = False) -> str:
    style = _CELL.format("left" if is_text(title) else "right") + (";font-weight:bold" if strong else "")
    return f'<{tag} style="{style}">{escape(text)}</{tag}>'


def _title(metric: "Metric", rows: "list[Row]") -> str:
    """Return the title of a metric's column."""
    of_rows = [same for row in rows if (same := row.metric(metric.name)) is not None]
    return f"{metric.name} (95% interval)" if any(same.interval_text() for same in of_rows) else metric.name
