"""Labels in time: intervals from TextGrid, .phn and .csv files."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError, UnreadableSampleError, renamed_flags
from sslkit.data.index import Index
from sslkit.data.patterns import path_beside
from sslkit.data.tables import read_lines, read_table
from sslkit.extras import load_extra

ALIGNMENTS = "{stem}.TextGrid, {stem}.phn or {stem}.csv beside each recording, or one .csv with a `path` column"
_COLUMNS = ("start", "end", "label")


@dataclass(frozen=True)
class Alignment:
    """Intervals of a recording in seconds, in the order of time, and the label of each."""

    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    labels: list[str]

    @classmethod
    def of(cls, intervals: list[tuple[float, float, str]], origin: str) -> "Alignment":
        """Return intervals without those that have no label; raises SslkitError if they end before they begin, or overlap."""
        named = sorted((start, end, label.strip()) for start, end, label in intervals if label.strip())
        starts, ends = (np.array([each[place] for each in named], dtype=np.float64) for place in (0, 1))
        if not (np.isfinite(starts).all() and np.isfinite(ends).all() and (starts < ends).all() and (starts >= 0).all()):
            raise SslkitError(f"{origin} has an interval that does not end after it begins", flag="alignments")
        if (starts[1:] < ends[:-1] - 1e-6).any():
            raise SslkitError(f"{origin} has intervals that overlap", "expected one label at a time", flag="alignments")
        return cls(starts, ends, [label for _, _, label in named])

    def label_at(self, seconds: float) -> str | None:
        """Return the label of a moment, None where there is none."""
        place = int(np.searchsorted(self.starts, seconds, side="right")) - 1
        return self.labels[place] if place >= 0 and seconds < self.ends[place] else None


def read_alignments(index: Index, pattern: str, tier: str | None, rates: Callable[[int], int]) -> dict[int, Alignment]:
    """Return the alignments of recordings by row; those without a file, or without a line in a table, are left out.

    `pattern` is a path from the folder of each recording with {stem} in it, or that of one table for all. `rates` tells the
    sample rate of a recording, in whose samples .phn files count. Raises SslkitError for files that are malformed, and if no
    recording has one.
    """
    suffix = os.path.splitext(pattern)[1].lower()
    if tier is not None and suffix != ".textgrid":
        raise SslkitError(f"{pattern} has no tiers", "leave it out", flag="tier")
    if suffix not in (".textgrid", ".phn", ".csv"):
        raise SslkitError(f"{pattern} is not a file of labels", f"expected {ALIGNMENTS}", flag="alignments")
    if "{stem}" not in pattern:
        if suffix != ".csv":
            raise SslkitError(f"{pattern} names the same file for all recordings", f"expected {ALIGNMENTS}", flag="alignments")
        alignments = _read_common_table(index, Path(pattern))
        where = f"{pattern} lists none of the recordings"
    else:
        paths = [path_beside(os.path.join(index.root, path), pattern) for path in index.paths]
        alignments = {}
        for row, path in enumerate(paths):
            if os.path.isfile(path):
                try:
                    alignments[row] = _read(Path(path), suffix, tier, row, rates)
                except UnreadableSampleError:  # a recording whose sample rate nobody knows
                    continue
        where = f"{pattern} finds no file beside any recording, such as {paths[0]}"
    if not any(alignment.labels for alignment in alignments.values()):
        raise SslkitError(f"{where} of {index.source}" if not alignments else f"{pattern} has no labels", flag="alignments")
    return alignments


def fingerprint(index: Index, alignments: dict[int, Alignment]) -> str:
    """Return a hash of recordings and labels."""
    digest = blake2b(index.fingerprint().encode(), digest_size=8)
    for row, alignment in sorted(alignments.items()):
        digest.update(f"{row}\0".encode() + alignment.starts.tobytes() + alignment.ends.tobytes())
        digest.update("\0".join(alignment.labels).encode())
    return digest.hexdigest()


def _read(path: Path, suffix: str, tier: str | None, row: int, rates: Callable[[int], int]) -> Alignment:
    if suffix == ".textgrid":
        return _read_text_grid(path, tier)
    if suffix == ".phn":
        rate, lines = rates(row), [(number, line.split(maxsplit=2)) for number, line in read_lines(path, "alignments")]
        return Alignment.of([_interval(path, number, cells, 1 / rate) for number, cells in lines], str(path))
    if len(read_lines(path, "alignments")) < 2:
        return Alignment.of([], str(path))  # a header alone
    with renamed_flags({"data": "alignments"}):
        table = read_table(path, "label")
    cells = zip(table.lines, *(table.column(name, "alignments", allow_empty=name == "label") for name in _COLUMNS), strict=True)
    return Alignment.of([_interval(path, line, list(values), 1.0) for line, *values in cells], str(path))


def _interval(path: Path, line: int, cells: list[str], unit: float) -> tuple[float, float, str]:
    """Return start, end and label of a line; raises SslkitError if they are no numbers."""
    try:
        start, end = (float(cell) * unit for cell in cells[:2])
    except ValueError as error:
        raise SslkitError(
            f"line {line} of {path} should begin with start and end (got {' '.join(cells)})", flag="alignments"
        ) from error
    return start, end, cells[2] if len(cells) > 2 else ""


def _read_common_table(index: Index, path: Path) -> dict[int, Alignment]:
    """Return the alignments that one table has for recordings, whose paths begin at the table or are those of the data."""
    with renamed_flags({"data": "alignments"}):
        table = read_table(path)
    columns = [table.column(name, "alignments", allow_empty=name == "label") for name in ("path", *_COLUMNS)]
    intervals: dict[str, list[tuple[float, float, str]]] = {}
    for line, name, *cells in zip(table.lines, *columns, strict=True):
        intervals.setdefault(os.path.abspath(path.parent / name), []).append(_interval(path, line, cells, 1.0))
    alignments = {}
    for row, name in enumerate(index.paths):
        in_data, from_table = os.path.abspath(index.root / name), os.path.abspath(path.parent / name)
        if (of_row := intervals.get(in_data, intervals.get(from_table))) is not None:
            alignments[row] = Alignment.of(of_row, f"{path}, {name}")
    return alignments


def _read_text_grid(path: Path, tier: str | None) -> Alignment:
    """Return the intervals of a tier: `phones`, if none is named, or the only one."""
    praat: Any = load_extra("praatio.textgrid", "audio", "reading TextGrid files")
    try:
        grid = praat.openTextgrid(str(path), includeEmptyIntervals=False, reportingMode="error")
    except Exception as error:  # a parser of hostile text raises anything
        raise SslkitError(f"{path} cannot be read: {type(error).__name__}: {error}", flag="alignments") from error
    tiers = {name: each for name, each in zip(grid.tierNames, grid.tiers, strict=True) if type(each).__name__ == "IntervalTier"}
    if tier is None and "phones" not in tiers and len(tiers) != 1:
        raise SslkitError(f"{path} has the tiers {', '.join(tiers) or 'none'}", "name the one with labels", flag="tier")
    name = tier or ("phones" if "phones" in tiers else next(iter(tiers)))
    if name not in tiers:
        raise SslkitError(f"{path} has no tier {name} of intervals", f"its tiers: {', '.join(tiers) or 'none'}", flag="tier")
    return Alignment.of([(float(start), float(end), str(label)) for start, end, label in tiers[name].entries], str(path))
