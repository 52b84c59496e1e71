"""Lists and tables of samples: text files that are read strictly, because a line that is misread is a wrong label."""

import csv
import io
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, did_you_mean

_BREAK = re.compile(r"[\r\n]")
_LARGEST_CELL = 2**24  # characters


def read_text(path: Path, flag: str = "data") -> str:
    """Return the text of a file; raises SslkitError, naming the line, if it is not UTF-8, and if it can't be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        denied = isinstance(error, PermissionError)
        problem = f"no permission to read {path}" if denied else f"cannot read {path}: {error.strerror}"
        raise SslkitError(problem, flag=flag) from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise SslkitError(f"{path} is not UTF-8 text (line {line})", "save it as UTF-8", flag=flag) from error


def read_lines(path: Path, flag: str = "data") -> list[tuple[int, str]]:
    """Return the number and text of each line that is not blank.

    A line ends where an editor ends it: other separators of Unicode may be part of a name.
    """
    lines = read_text(path, flag).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]


@dataclass(frozen=True)
class Table:
    """The rows of a .csv or .tsv, all as long as its header."""

    path: Path
    columns: list[str]
    rows: list[list[str]]
    lines: list[int]  # of the file, where each row begins

    def column(self, name: str, flag: str = "data", single_line: bool = True, allow_empty: bool = False) -> list[str]:
        """Return the cells of a column; raises SslkitError if it is missing, or has an empty cell.

        `single_line`: also if a cell contains a line break, which then stems from a stray quote. `allow_empty`: cells may be
        empty, but not all of them.
        """
        if self.columns.count(name) != 1:
            problem = "no" if name not in self.columns else "more than one"
            hint = did_you_mean(name, self.columns) if problem == "no" else "rename one of them"
            raise SslkitError(f"{self.path} has {problem} column {name}", hint, flag=flag)
        place = self.columns.index(name)
        cells = [row[place] for row in self.rows]
        allow_empty = allow_empty and any(map(str.strip, cells))
        for line, cell in zip(self.lines, cells, strict=True):
            if not (allow_empty or cell.strip()):
                raise SslkitError(f"{name} is empty in line {line} of {self.path}", flag=flag)
            if single_line and _BREAK.search(cell):
                raise SslkitError(
                    f"{name} in line {line} of {self.path} contains a line break", "is there a stray quote?", flag=flag
                )
        return cells


def read_columns(path: Path) -> list[str]:
    """Return the names of the columns of a .csv or .tsv."""
    return next(iter(_reader(path, path.suffix.lower() == ".tsv")), [])


def _reader(path: Path, tabs: bool) -> Any:
    form: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if tabs else {"strict": True}
    csv.field_size_limit(_LARGEST_CELL)
    return csv.reader(io.StringIO(read_text(path), newline=""), **form)


def read_table(path: Path, needed: str = "path") -> Table:
    """Read a .csv, or a .tsv, in which quotes mean nothing, with a header that has a column `needed`.

    Raises SslkitError, naming the line, for rows of another length than the header and for quotes that do not pair.
    """
    tabs = path.suffix.lower() == ".tsv"
    reader = _reader(path, tabs)
    rows: list[list[str]] = []
    lines: list[int] = []
    start = 1
    try:
        for row in reader:
            if row:
                rows.append(row)
                lines.append(start)
            start = reader.line_num + 1
    except csv.Error as error:
        raise _quoting_error(path, start, reader.line_num, str(error)) from error
    columns = rows.pop(0) if rows else []
    first = lines.pop(0) if lines else 1
    if needed not in columns:
        listed = ", ".join(columns) or "none"
        separated = len(columns) == 1 and not tabs and any(mark in listed for mark in ";\t")
        hint = "separate cells by commas" if separated else f"columns: {listed}"
        raise SslkitError(f"{path} has no column `{needed}` in line {first}", hint, flag="data")
    if not rows:
        raise SslkitError(
            f"{path} lists no {'file' if needed == 'path' else 'sample'}",
            "expected a header and one row per sample",
            flag="data",
        )
    for line, row in zip(lines, rows, strict=True):
        if len(row) != len(columns):
            raise SslkitError(
                f"line {line} of {path} has {len(row)} cell{'s'[: len(row) != 1]}, but its header has {len(columns)}",
                ("remove the tab" if tabs else "quote cells that contain commas")
                if len(row) > len(columns)
                else "every row needs all columns",
                flag="data",
            )
    several = [line for line, row in zip(lines, rows, strict=True) if any(map(_BREAK.search, row))]
    if several:
        say_once(f"{len(several):,} rows of {path} contain line breaks in a cell (the first in line {several[0]})")
    return Table(path, columns, rows, lines)


def _quoting_error(path: Path, start: int, line: int, message: str) -> SslkitError:
    """Return the error for a row that csv cannot read: it begins in line `start`, csv gave up in `line`."""
    if message == "unexpected end of data" or message.startswith("field larger"):
        return SslkitError(f"a quote in line {start} of {path} is never closed", "close or remove it", flag="data")
    hint = ""
    if message.startswith("',' expected after"):
        message, hint = "text follows a closing quote", 'write a quote inside a quoted cell twice: ""'
    return SslkitError(f"line {line} of {path} is not valid CSV: {message}", hint, flag="data")
