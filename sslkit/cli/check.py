"""`sslkit check TASK`: does a task keep the promises of the contract?"""

from dataclasses import asdict
from typing import Annotated

import typer

from sslkit.cli import completion
from sslkit.console import print_json, say, stdout


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    app.command("check", help=summary, rich_help_panel=panel)(_check)


def _check(
    task: Annotated[
        str, typer.Argument(autocompletion=completion.task, help="An installed task (`sslkit tasks`) or a .py file.")
    ],
    full: Annotated[
        bool,
        typer.Option("--full", help="Also run the slower checks (half a minute): exactness, compilation, resume."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")] = False,
) -> None:
    from sslkit.testing import SLOWER, check_task

    say(f"checking {task}{', which takes about half a minute' if full else ''}")
    verdicts = check_task(task, full)
    broken = sum(not verdict.passed for verdict in verdicts)
    if as_json:
        print_json({"task": task, "passed": not broken, "verdicts": [asdict(verdict) for verdict in verdicts]})
    else:
        for verdict in verdicts:
            stdout.print("kept   " if verdict.passed else "BROKEN ", style="green" if verdict.passed else "bold red", end="")
            stdout.print(f"{verdict.promise}{f': {verdict.detail}' if verdict.detail else ''}", markup=False)
        kind, more = ("", "") if full else ("quick ", f"; {len(SLOWER)} more with --full")
        stdout.print(f"{len(verdicts) - broken} of {len(verdicts)} {kind}promises kept{more}", markup=False)
    raise typer.Exit(1 if broken else 0)
