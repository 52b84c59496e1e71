"""`sslkit tasks`."""

import json
from typing import Annotated

import typer
from rich.table import Table

from sslkit.console import stdout


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("tasks", help=summary, rich_help_panel=panel)(_tasks)


def _tasks(
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
) -> None:
    """List the installed pretext tasks and the packages they come from."""
    from sslkit import registry

    installed = registry.entries(registry.TASKS)
    if as_json:
        keys = ("name", "modality", "package", "version", "summary")
        print(json.dumps({"tasks": [{key: getattr(entry, key) for key in keys} for entry in installed]}))
        return
    table = Table(box=None, pad_edge=False)
    for column in ("task", "modality", "package", "what it learns"):
        table.add_column(column, no_wrap=column != "what it learns")
    names = [entry.name for entry in installed]
    for entry in installed:
        twice = " (offered twice!)" if names.count(entry.name) > 1 else ""
        table.add_row(entry.name + twice, entry.modality, f"{entry.package} {entry.version}", entry.summary)
    stdout.print(table, soft_wrap=False)
