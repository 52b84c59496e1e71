"""`sslkit preview TASK`."""

from typing import Any

import typer

from sslkit.cli.arguments import JSON
from sslkit.cli.output import show
from sslkit.cli.task_command import add_task_command, task_spec
from sslkit.specs.look import PreviewSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application, with the options of the task that the arguments name."""
    add_task_command(app, "preview", panel, summary, arguments, PreviewSpec, {"json": JSON}, _run)


def _run(values: dict[str, Any], extras: dict[str, Any], task_class: Any) -> None:
    spec, _, _ = task_spec(PreviewSpec, values, extras, task_class)
    import sslkit

    show(sslkit.preview(spec), bool(extras["json"]))
