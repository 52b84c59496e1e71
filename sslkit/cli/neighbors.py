"""`sslkit neighbors QUERY...`."""

from typing import Any

import typer

from sslkit.cli.arguments import add_call
from sslkit.console import stdout
from sslkit.specs.use import NeighborsSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "neighbors", panel, summary, NeighborsSpec, printed=_print, argument="queries")


def _print(result: dict[str, Any]) -> None:
    for word, near in result["neighbors"].items():
        stdout.print(f"{word:<16} {', '.join(f'{other} {cosine:.2f}' for other, cosine in near)}", markup=False)
    if result["picture"] is not None:
        stdout.print(f"picture in {result['picture']}", markup=False)
