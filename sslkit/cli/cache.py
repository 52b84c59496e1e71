"""`sslkit cache`."""

import json
from datetime import datetime
from typing import Annotated

import typer

from sslkit.console import stdout


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("cache", help=summary, rich_help_panel=panel)(_cache)


def _cache(
    clear: Annotated[bool, typer.Option("--clear", help="Remove everything in it.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
) -> None:
    """Show what the cache of indexes and decoded images holds, or clear it."""
    from sslkit.data import cache

    if clear:
        freed = cache.clear()
        print(json.dumps({"freed": freed}) if as_json else f"freed {freed / 1e6:,.0f} MB in {cache.cache_folder()}")
        return
    stored = cache.stored()
    total = sum(entry.bytes for entry in stored)
    if as_json:
        entries = [{"path": str(entry.folder), "bytes": entry.bytes, "used": entry.used} for entry in stored]
        print(json.dumps({"folder": str(cache.cache_folder()), "bytes": total, "canvases": entries}))
        return
    stdout.print(f"{cache.cache_folder()}: {len(stored)} data sets, {total / 1e6:,.0f} MB", markup=False)
    for entry in stored:
        used = datetime.fromtimestamp(entry.used).isoformat(" ", "minutes")
        stdout.print(
            f"  {entry.bytes / 1e6:>8,.0f} MB  last used {used}  {entry.folder.parent.name}/{entry.folder.name}", markup=False
        )
