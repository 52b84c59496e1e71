"""`sslkit evaluate`."""

import typer

from sslkit.cli.arguments import add_call
from sslkit.specs.evaluation import EvaluateSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "evaluate", panel, summary, EvaluateSpec)
