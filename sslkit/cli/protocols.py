"""`sslkit protocols`."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from sslkit.console import stdout


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("protocols", help=summary, rich_help_panel=panel)(_protocols)


def _protocols(
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
) -> None:
    from sslkit.evaluation.installed import installed_protocols

    protocols = installed_protocols()

    if as_json:
        print(json.dumps({"protocols": [asdict(protocol) for protocol in protocols.values()]}))
        return
    for protocol in protocols.values():
        stdout.print(f"{protocol.id:<22} {protocol.summary}", markup=False)
        settings = {name: value for name, value in protocol.settings.items() if value is not None}
        if settings:
            values = ", ".join(f"{name} {_value_text(value)}" for name, value in settings.items())
            stdout.print(f"{'':<22} {values}", style="dim", markup=False)
    stdout.print("\nA value set by hand gives a result without an id; a changed default gets a new version.", markup=False)


def _value_text(value: object) -> str:
    return f"one of {', '.join(map(str, value))}" if isinstance(value, list) else str(value)
