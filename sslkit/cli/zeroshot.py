"""`sslkit zeroshot`."""

import typer

from sslkit.cli.common import add_call
from sslkit.specs import ZeroshotSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "zeroshot", panel, summary, ZeroshotSpec)
