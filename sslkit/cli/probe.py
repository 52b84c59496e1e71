"""`sslkit probe`."""

import typer

from sslkit.cli.arguments import add_call
from sslkit.specs.evaluation import ProbeSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "probe", panel, summary, ProbeSpec)
