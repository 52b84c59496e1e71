"""`sslkit report RUN...`."""

import typer

from sslkit.cli.arguments import add_call
from sslkit.specs.look import ReportSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "report", panel, summary, ReportSpec, call="report", argument="runs")
