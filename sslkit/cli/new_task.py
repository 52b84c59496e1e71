"""`sslkit new-task NAME`."""

from typing import Any

import typer

from sslkit.cli.arguments import add_call
from sslkit.console import stdout
from sslkit.specs.extend import NewTaskSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "new-task", panel, summary, NewTaskSpec, call="new_task", printed=_print, argument="name")


def _print(result: dict[str, Any]) -> None:
    stdout.print(f"wrote {', '.join(result['files'])} to {result['folder']}", markup=False)
    stdout.print(f"next: pip install -e {result['folder']} && sslkit check {result['name']} --full", markup=False)
