"""`sslkit words`."""

from typing import Any

import typer

from sslkit.cli.arguments import add_call
from sslkit.console import stdout
from sslkit.text.specs import WordsSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application."""
    add_call(app, "words", panel, summary, WordsSpec, printed=_print)


def _print(result: dict[str, Any]) -> None:
    for row in result["similarity"]:
        kept = f"{row['pairs']:,} pairs, {row['left_out']:,} left out"
        stdout.print(f"{row['file']}: Spearman {row['spearman']:.3f} (p {row['p_value']:.2g}; {kept})", markup=False)
    for row in result["analogies"]:
        low, high = row["accuracy_interval"]
        kept = f"{row['questions']:,} questions, {row['left_out']:,} left out"
        said = f"{row['accuracy']:.1%} ({100 * low:.1f} to {100 * high:.1f}; {kept})"
        stdout.print(f"{row['file']}, {row['section']}: {said}", markup=False)
    stdout.print(f"{result['words']:,} words, weights {result['weights']}, {result['checkpoint']}", markup=False)
