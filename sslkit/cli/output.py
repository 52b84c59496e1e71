"""Results as people read them: a table, and below it what a number needs to be believed."""

import dataclasses
from collections.abc import Callable
from typing import Any

from rich.table import Table
from rich.text import Text

from sslkit.console import RANK, print_json, stdout
from sslkit.reporting.numbers import interval, p_value, protocol_of, share


def show(result: Any, as_json: bool, lines: Callable[[Any], list[str] | None] | None = None) -> None:
    """Print what a command returns: one JSON object, the table of an evaluation, a command's own lines, or its fields."""
    values = dataclasses.asdict(result)
    if as_json:
        print_json(values)
        return
    if RANK > 0:
        return
    own = None if lines is None else lines(result)
    if own is None and "rows" in values:
        show_rows(values)
        return
    for line in _field_lines(values) if own is None else own:
        stdout.print(line, markup=False)


def _field_lines(values: dict[str, Any]) -> list[str]:
    """Return a line for each field."""
    found = []
    for name, value in values.items():
        if isinstance(value, dict):
            text = ", ".join(f"{key} {inner}" for key, inner in value.items())
        elif isinstance(value, float):
            text = f"{value:.4g}"
        else:
            text = "none" if value is None else str(value)
        found.append(f"{name.replace('_', ' '):<26} {text or 'none'}")
    return found


def show_rows(result: dict[str, Any]) -> None:
    """Print the table of one result: a line for each model, layer and test part."""
    rows = result["rows"]
    several_tests = len({row["test"] for row in rows}) > 1
    layers = len({row["layer"] for row in rows} - {None, "last"}) > 0
    measures = [name for name in _TITLES if any(row.get(name) is not None for row in rows)]
    table = Table(box=None, pad_edge=False)
    places = ["model", *(["test"] if several_tests else []), *(["layer"] if layers else [])]
    for column in [*places, *(_TITLES[name] for name in measures), "p"]:
        table.add_column(column, justify="left" if column in ("model", "test") else "right", no_wrap=column != "test")
    for row in rows:
        cells = [row[place] or "" for place in places] + [_shown(row, name) for name in measures] + [p_value(row)]
        table.add_row(*map(Text, cells))  # not as markup: paths may hold brackets
    stdout.print(protocol_of(result) + ("" if result["protocol"] else ": no protocol id"), style="bold")
    # As wide as it has to be: a number that was cut off is none. (`print` itself would not go beyond the terminal's width.)
    table.width = stdout.measure(table, options=stdout.options.update(max_width=1000)).maximum
    stdout.print(table, crop=False, soft_wrap=False)
    first = rows[0]
    chosen = "; ".join(_chosen(one) for one in first.get("chosen", []) if _chosen(one))
    seen = ", which pretraining has seen" if first["test_seen_in_pretraining"] else ""
    training = f"{first['n_train']:,} training and " if first["n_train"] else ""
    stdout.print(f"{training}{first['n_test']:,} test samples{seen}", markup=False)
    for row in rows:
        if row["model"] == first["model"] and row["layer"] == first["layer"] and row["duplicates"]:
            stdout.print(f"{row['duplicates']:,} images of {row['test']} are in the training part, too", markup=False)
    if chosen:
        stdout.print(f"chosen without the test part: {chosen}", markup=False)
    stdout.print(f"weights {result['weights']}, data {result['data']['train']}, {result['checkpoint']}", markup=False)


_TITLES = {
    "top1": "top-1 (95% interval)",
    "top5": "top-5",
    "macro_f1": "macro F1",
    "balanced_accuracy": "balanced",
    "mean_average_precision": "mAP",
    "precision_at_1": "precision at 1",
    "precision_at_10": "at 10",
    "recall_at_1": "recall at 1 (95% interval)",
    "recall_at_5": "at 5",
    "recall_at_10": "at 10",
}


def _shown(row: dict[str, Any], name: str) -> str:
    if row.get(name) is None:
        return ""
    return share(row, name) + (f" ({interval(row, name)})" if row.get(f"{name}_interval") is not None else "")


def _chosen(one: dict[str, Any]) -> str:
    return ", ".join(f"{name} {one[name]}" for name in ("layer", "lr", "c") if name in one)
