"""`sslkit map`."""

import typer

from sslkit.cli.arguments import add_call
from sslkit.specs.look import MapSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "map", panel, summary, MapSpec, call="map_features")
