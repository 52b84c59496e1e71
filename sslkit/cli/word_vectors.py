"""`sslkit word-vectors`."""

import typer

from sslkit.cli.arguments import add_call
from sslkit.text.specs import WordVectorSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "word-vectors", panel, summary, WordVectorSpec, call="word_vectors")
