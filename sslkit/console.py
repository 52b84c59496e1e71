"""Output: progress and messages on stderr, results on stdout (with `--json` a single object)."""

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Any

from rich.console import Console

from sslkit.processes import PLACE

if TYPE_CHECKING:
    from rich.progress import Progress

_NARROWEST = 40  # columns; a terminal that says less has no size, and Rich would print nothing

if os.environ.get("COLUMNS", "").isdecimal() and int(os.environ["COLUMNS"]) < _NARROWEST:
    os.environ["COLUMNS"] = "80"


class _Console(Console):
    """A console whose reader may leave early, as `| head -1` does: the rest is printed to nobody, and the work goes on."""

    def on_broken_pipe(self) -> None:
        close_output(self.file)


def replace_unprintable() -> None:
    """Print `?` for a character that an output's encoding lacks, as Windows' code pages lack `≥`, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="replace")


def close_output(stream: IO[str]) -> None:
    """Send what is still printed to a stream whose reader has left to nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, stream.fileno())
    os.close(nowhere)


stderr = _Console(stderr=True, highlight=False, soft_wrap=True)


stdout = _Console(highlight=False, soft_wrap=True)


# Of several processes of a job the first prints for all, the others only their own failures.
PROCESSES, RANK = PLACE.size, PLACE.rank


def say(message: str, style: str | None = None) -> None:
    """Print one message on stderr, without interpreting markup (paths may contain brackets)."""
    if RANK == 0:
        stderr.print(message, style=style, markup=False)


@contextmanager
def silence() -> Iterator[None]:
    """Print nothing on stderr meanwhile."""
    before, stderr.quiet = stderr.quiet, True
    try:
        yield
    finally:
        stderr.quiet = before


def print_json(value: Any) -> None:
    """Print one JSON object on stdout."""
    if RANK == 0:
        print(json.dumps(value))


class ProgressReporter:
    """Report progress of a long operation: a bar on a terminal, a plain line every ten seconds elsewhere."""

    def __init__(self, title: str, total: int | None, progress: "Progress | None") -> None:
        self.title, self.total, self.progress = title, total, progress
        self.done = 0
        self.started_at = self.printed_at = time.monotonic()
        self.bar = progress.add_task(title, total=total, text="") if progress else None

    def advance(self, amount: int = 1, text: str = "") -> None:
        """Count `amount` more units as done; `text` is shown at the end of the line."""
        self.done += amount
        now = time.monotonic()
        if self.progress is not None and self.bar is not None:
            self.progress.update(self.bar, completed=self.done, text=text)
        elif now - self.printed_at >= 10 or (self.done == self.total and now - self.started_at >= 10):
            self.printed_at = now
            of = f"/{self.total}" if self.total else ""
            say(f"{self.title} {self.done}{of} {text}".rstrip())


@contextmanager
def show_progress(title: str, total: int | None, done: int = 0) -> Iterator[ProgressReporter]:
    """Show the progress of an operation with `total` units (None: unknown), of which `done` were done before."""
    if not stderr.is_terminal or RANK > 0:
        plain = ProgressReporter(title, total, None)
        plain.done = done
        yield plain
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn  # not for `sslkit --help`

    columns: list[Any] = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TextColumn("{task.fields[text]}"), console=stderr, transient=True) as progress:
        bar = ProgressReporter(title, total, progress)
        bar.done = done
        yield bar


def duration(seconds: float) -> str:
    """Return a duration as text: `48 s`, `5 min 10 s`, `3 h 20 min`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
