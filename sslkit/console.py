"""Output: progress and messages on stderr, results on stdout (with `--json` a single object)."""

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from sslkit.processes import PLACE

_EVERY = 10  # seconds between lines of progress where there is no terminal
_NARROWEST_BAR, _WIDEST_BAR = 8, 40
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


_printed: set[str] = set()  # notices of this command


def say_once(message: str) -> None:
    """Print a notice on stderr that was not printed before in this command; from Python, in this process."""
    if message not in _printed and not stderr.quiet:
        _printed.add(message)
        say(message)


def start_command() -> None:
    """Forget the notices of the command before."""
    _printed.clear()


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
    """Report progress of a long operation: one line that is redrawn on a terminal, a new one every ten seconds elsewhere.

    On a terminal the line fits: counter and time left are always there, then texts in their order, then a bar.
    """

    def __init__(self, title: str, total: int | None, done: int = 0, on_terminal: bool = False) -> None:
        self.title, self.total, self.done, self.on_terminal = title, total, done, on_terminal
        self.texts: tuple[str, ...] = ()
        self.left = ""
        self._done_before = done
        self._started_at = self._printed_at = time.monotonic()

    def advance(self, amount: int = 1, *texts: str, left: str | None = None) -> None:
        """Count `amount` more units as done; show texts, the most important first, and what is `left`: by default measured."""
        self.done += amount
        self.texts = tuple(filter(None, texts))
        self.left = self._measure_left() if left is None else left
        now = time.monotonic()
        due = now - self._printed_at >= _EVERY or (self.done == self.total and now - self._started_at >= _EVERY)
        if due and not self.on_terminal:
            self._printed_at = now
            say("  ".join([f"{self.title} {self.counter}", *filter(None, [self.left]), *self.texts]))

    @property
    def counter(self) -> str:
        """Return how much is done: `12/80`."""
        return f"{self.done}/{self.total}" if self.total else str(self.done)

    def fit(self, width: int) -> tuple[str, int, str]:
        """Return the line for so many columns in three parts: the title, how wide the bar is, 0 for none, and the rest."""
        title, rest = self.title, "  ".join(filter(None, [self.counter, self.left]))
        if len(title) + 1 + len(rest) > width:
            title = title[: max(0, width - len(rest) - 2)] + "…"
        for text in self.texts:
            if len(title) + 1 + len(rest) + 2 + len(text) > width:
                break
            rest += f"  {text}"
        spare = width - len(title) - len(rest) - 2
        return title, min(spare, _WIDEST_BAR) if self.total and spare >= _NARROWEST_BAR else 0, rest

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        title, width, rest = self.fit(options.max_width)
        line, mark = Text(f"{title} ", no_wrap=True, overflow="crop"), "-" if options.ascii_only else "━"
        if width and self.total:
            filled = round(width * min(1.0, self.done / self.total))
            line.append(mark * filled, "bar.complete").append(mark * (width - filled), "bar.back").append(" ")
        yield line.append(rest)

    def _measure_left(self) -> str:
        """Return the time left at the pace so far, nothing before there is one."""
        seconds, done = time.monotonic() - self._started_at, self.done - self._done_before
        if not self.total or not done or seconds < 1 or self.done >= self.total:
            return ""
        return f"{duration(seconds / done * (self.total - self.done))} left"


@contextmanager
def show_progress(title: str, total: int | None, done: int = 0) -> Iterator[ProgressReporter]:
    """Show the progress of an operation with `total` units (None: unknown), of which `done` were done before."""
    on_terminal = stderr.is_terminal and RANK == 0
    progress = ProgressReporter(title, total, done, on_terminal)
    if not on_terminal:
        yield progress
        return
    from rich.live import Live  # not for `sslkit --help`

    with Live(progress, console=stderr, transient=True, refresh_per_second=10):
        yield progress


def duration(seconds: float) -> str:
    """Return a duration as text: `48 s`, `5 min 10 s`, `3 h 20 min`, `12 days`."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    minutes, rest = divmod(seconds, 60)
    if minutes < 60:
        return f"{minutes} min {rest} s" if rest else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 100:
        return f"{hours // 24:,} days"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
