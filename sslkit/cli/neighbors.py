"""`sslkit neighbors WORD...`."""

import inspect
from typing import Annotated, Any

import typer

from sslkit.cli.common import JSON, read_spec
from sslkit.cli.flags import command
from sslkit.console import print_json, stdout
from sslkit.specs import NeighborsSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    argument = Annotated[list[str], typer.Argument(help="Words whose neighbours are wanted.")]
    words = inspect.Parameter("words", inspect.Parameter.KEYWORD_ONLY, annotation=argument)
    hidden = frozenset({"words"})
    function = command(_run, summary, {"Settings": NeighborsSpec}, {"json": JSON}, hidden=hidden, argument=words)
    app.command("neighbors", rich_help_panel=panel)(function)


def _run(given: dict[str, Any], extras: dict[str, Any]) -> None:
    spec = read_spec(NeighborsSpec, given, extras)
    import sslkit

    result = sslkit.neighbors(spec)
    if extras["json"]:
        print_json({"checkpoint": result.checkpoint, "neighbors": result.neighbors})
        return
    for word, near in result.neighbors.items():
        stdout.print(f"{word:<16} {', '.join(f'{other} {cosine:.2f}' for other, cosine in near)}", markup=False)
