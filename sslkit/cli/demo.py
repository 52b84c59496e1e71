"""`sslkit demo`."""

from typing import Any

import typer

from sslkit.cli.arguments import JSON, read_spec
from sslkit.cli.options import command
from sslkit.cli.output import show
from sslkit.specs.train import DemoSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("demo", rich_help_panel=panel)(command(_run, summary, {"Settings": DemoSpec}, {"json": JSON}))


def _run(given: dict[str, Any], extras: dict[str, Any]) -> None:
    spec = read_spec(DemoSpec, given, extras)
    from sslkit.image.demo import demo, show_table

    result = demo(spec)
    if extras["json"]:
        show(result, extras)
    else:
        show_table(result)
