"""`sslkit neighbors QUERY...`."""

import inspect
from dataclasses import asdict
from typing import Annotated, Any

import typer

from sslkit.cli.common import JSON, read_spec
from sslkit.cli.flags import command
from sslkit.console import print_json, stdout
from sslkit.specs import NeighborsSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    argument = Annotated[list[str] | None, typer.Argument(help="Words, or image files; default: eight images of the data.")]
    queries = inspect.Parameter("queries", inspect.Parameter.KEYWORD_ONLY, annotation=argument, default=None)
    hidden = frozenset({"queries"})
    function = command(_run, summary, {"Settings": NeighborsSpec}, {"json": JSON}, hidden=hidden, argument=queries)
    app.command("neighbors", rich_help_panel=panel)(function)


def _run(given: dict[str, Any], extras: dict[str, Any]) -> None:
    spec = read_spec(NeighborsSpec, given, extras)
    import sslkit

    result = sslkit.neighbors(spec)
    if extras["json"]:
        print_json(asdict(result))
        return
    for word, near in result.neighbors.items():
        stdout.print(f"{word:<16} {', '.join(f'{other} {cosine:.2f}' for other, cosine in near)}", markup=False)
    if result.picture is not None:
        stdout.print(f"picture in {result.picture}", markup=False)
