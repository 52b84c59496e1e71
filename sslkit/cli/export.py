"""`sslkit export`."""

from typing import Any

import typer

from sslkit.cli.common import JSON, SPEC, read_spec, show
from sslkit.cli.flags import command
from sslkit.specs import ExportSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    extra = {"spec": SPEC, "json": JSON}
    app.command("export", rich_help_panel=panel)(command(_run, summary, {"Settings": ExportSpec}, extra))


def _run(given: dict[str, Any], extras: dict[str, Any]) -> None:
    spec = read_spec(ExportSpec, given, extras)
    from sslkit.exports import export

    show(export(spec), extras)
