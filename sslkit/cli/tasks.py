"""`sslkit tasks`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer
from rich.table import Table

from sslkit.cli import completion
from sslkit.cli.output import print_whole
from sslkit.console import print_json, stdout
from sslkit.contract.errors import flag_name


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("tasks", help=summary, rich_help_panel=panel)(_tasks)


def _tasks(
    name: Annotated[
        str | None,
        typer.Argument(autocompletion=completion.task, help="A task, whose settings are listed: defaults and authors'."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
) -> None:
    """List the installed pretext tasks and the packages they come from, or the settings of one."""
    if name is not None:
        _settings(name, as_json)
        return
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
    if stdout.is_terminal:  # where a long line would be broken anywhere
        stdout.print(table, soft_wrap=False)
    else:
        print_whole(table)


def _settings(name: str, as_json: bool) -> None:
    """Print a task's defaults beside its authors' settings."""
    from sslkit.tasks.load import load_task
    from sslkit.tasks.recipes import setting_rows

    task_class = load_task(name)
    rows, paper = setting_rows(task_class), task_class.paper
    source, unsupported = ("", ()) if paper is None else (paper.source, paper.unsupported)
    if as_json:
        print_json({"task": name, "settings": [asdict(row) for row in rows], "source": source, "unsupported": unsupported})
        return
    table = Table(box=None, pad_edge=False)
    for column in ("setting", "default", "--recipe paper"):
        table.add_column(column)
    for row in rows:
        table.add_row(flag_name(row.name), row.default, row.paper)
    stdout.print((task_class.__doc__ or "").partition("\n")[0], markup=False)
    print_whole(table)
    stdout.print(f"authors' settings: {source or 'not stated'}", markup=False)
    for remark in unsupported:
        stdout.print(f"no setting for: {remark}", markup=False)
