"""Results as people read them: a table, and below it what a number needs to be believed."""

import dataclasses
from collections.abc import Callable, Collection, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from sslkit.console import RANK, print_json, stdout
from sslkit.contract.presentation import is_text, table_cells
from sslkit.contract.result import Finding, Result, Results
from sslkit.evaluation.notes import describe_comparisons
from sslkit.processes import report_result


def show(
    result: Any,
    as_json: bool,
    lines: Callable[[Any], Sequence[str | Result] | None] | None = None,
    details: bool = False,
) -> None:
    """Print what a command returns: an evaluation's table and notes, a command's own lines, or its fields, and findings.

    With `as_json`, one JSON object; with `details`, the p-values of an evaluation follow.
    """
    values = result.to_json() if isinstance(result, Result | Results) else dataclasses.asdict(result)
    if RANK > 0 or report_result(values):  # which the first process, or the one that started it, prints
        return
    if as_json:
        print_json(values)
        return
    if isinstance(result, Result):
        show_result(result, details)
        return
    if isinstance(result, Results):
        show_results(result, details)
        return
    custom = None if lines is None else lines(result)
    for line in field_lines(values) if custom is None else custom:
        if isinstance(line, Result):
            show_result(line, details)
        else:
            stdout.print(line, markup=False)


def field_lines(values: dict[str, Any]) -> list[str]:
    """Return a line for each field."""
    return [f"{name.replace('_', ' '):<26} {_field_text(value)}" for name, value in values.items()]


def show_results(results: Results, details: bool = False) -> None:
    """Print the results of several protocols, and why others were not possible."""
    repeated = set[str]()
    for result in results.results:
        show_result(result, details, repeated)
        repeated |= {finding.text for finding in result.findings}
        stdout.print()
    for protocol, reason in results.impossible.items():
        stdout.print(f"{protocol}: not possible: {reason}", markup=False)
    if results.table is not None:
        stdout.print(f"table in {results.table}", markup=False)


def show_result(result: Result, details: bool = False, repeated: Collection[str] = ()) -> None:
    """Print the table of one result, a line for each model, layer and test part, what it means, and its notes.

    Findings with one of the `repeated` texts are left out.
    """
    titles, lines = table_cells(result)
    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, justify="left" if is_text(title) else "right", no_wrap=title != "test")
    for cells in lines:
        table.add_row(*map(Text, cells))  # not as markup: paths may hold brackets
    stdout.print(result.title + ("" if result.protocol else " (not a named protocol)"), style="bold")
    print_whole(table)
    show_findings([finding for finding in result.findings if finding.text not in repeated])
    for note in [*result.notes, *(describe_comparisons(result.rows) if details else [])]:
        stdout.print(note, markup=False)
    training = f", training data {result.data.train}" if result.data.train else ""
    stdout.print(f"weights {result.weights}{training}, {result.checkpoint}", markup=False)


def show_findings(findings: Sequence[Finding]) -> None:
    """Print findings, each followed by its command, which is printed once and never broken into lines."""
    for place, finding in enumerate(findings):
        stdout.print(finding.text, style="bold", markup=False, soft_wrap=not stdout.is_terminal)  # a terminal breaks at words
        if finding.command and finding.command not in [later.command for later in findings[place + 1 :]]:
            stdout.print(f"next: {finding.command}", markup=False)


def print_whole(table: Table) -> None:
    """Print a table as wide as it has to be: a number that was cut off is none, and a line that goes on is two to `grep`."""
    # `print` itself would not go beyond the terminal's width.
    table.width = stdout.measure(table, options=stdout.options.update(max_width=1000)).maximum
    stdout.print(table, crop=False, soft_wrap=False)


def _field_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "none", True: "yes", False: "no"}[value]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:.4g}" for key, number in value.items()) or "none"
    return str(value)
