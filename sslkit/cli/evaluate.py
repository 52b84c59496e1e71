"""`sslkit evaluate`."""

from typing import Any

import typer

from sslkit.cli.arguments import add_call
from sslkit.cli.output import show_rows
from sslkit.console import stdout
from sslkit.specs.evaluation import EvaluateSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "evaluate", panel, summary, EvaluateSpec, call="evaluate", printed=_print)


def _print(result: dict[str, Any]) -> None:
    for one in result["results"]:
        if one["rows"]:
            show_rows(one)
        else:
            stdout.print(f"{one['protocol']}: not possible: {one['impossible']}", markup=False)
        stdout.print()
    if result["table"] is not None:
        stdout.print(f"table in {result['table']}", markup=False)
