"""`sslkit probe`."""

from typing import Any

import typer

from sslkit.cli.common import JSON, SPEC, read_spec, show
from sslkit.cli.flags import command
from sslkit.specs import ProbeSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    extra = {"spec": SPEC, "json": JSON}
    app.command("probe", rich_help_panel=panel)(command(_run, summary, {"Settings": ProbeSpec}, extra))


def _run(given: dict[str, Any], extras: dict[str, Any]) -> None:
    spec = read_spec(ProbeSpec, given, extras)
    from sslkit.evaluate.probe import probe

    show(probe(spec), extras)
