"""`sslkit compare`."""

from typing import Any

import typer

from sslkit.cli.arguments import add_call
from sslkit.console import stdout
from sslkit.specs.train import CompareSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "compare", panel, summary, CompareSpec, printed=_print)


def _print(result: dict[str, Any]) -> None:
    for name, folder in result["runs"].items():
        found = [f"{measure} {result[measure][name]:.1%}" for measure in ("knn", "probe") if result[measure] is not None]
        stdout.print("  ".join([f"{name:<20}", *found, folder]), markup=False)
    stdout.print(f"report in {result['report']}", markup=False)
