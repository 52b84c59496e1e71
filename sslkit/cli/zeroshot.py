"""`sslkit zeroshot`."""

import typer

from sslkit.cli.arguments import add_call
from sslkit.image_text.specs import ZeroshotSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "zeroshot", panel, summary, ZeroshotSpec)
