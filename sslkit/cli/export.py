"""`sslkit export`."""

import typer

from sslkit.cli.common import add_call
from sslkit.specs import ExportSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "export", panel, summary, ExportSpec)
