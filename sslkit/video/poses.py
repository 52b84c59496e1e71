"""`--poses`: where the camera is in each frame of a clip, from a table beside the frames."""

import csv

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.index import Index
from sslkit.video.reading import frame_names

_MOST_VALUES, _LARGEST = 64, 1e30  # numbers of a frame, and how large they may be


def count_values(index: Index, name: str) -> int:
    """Return how many numbers the poses of the first clip have; raises SslkitError if it has none."""
    try:
        return int(read_poses(index, 0, name).shape[1])
    except UnreadableSampleError as reason:
        raise SslkitError(f"{index.name(0)}: {reason}", "expected a .csv with a row per frame", flag="poses") from reason


def read_poses(index: Index, row: int, name: str, values: int | None = None) -> NDArray[np.float32]:
    """Return the numbers of each frame of a clip, `[frames, values]`, from a .csv file with or without a header.

    Raises UnreadableSampleError if there is no such file, for another number of rows than frames or of `values`, and for what
    is no finite number.
    """
    folder = index.root / index.paths[row]
    if not folder.is_dir():
        raise UnreadableSampleError("poses lie beside the frames in a folder, and this is a file")
    try:
        with open(folder / name, newline="", encoding="utf-8-sig") as stream:
            lines = [line for line in csv.reader(stream) if line]
    except FileNotFoundError as error:
        raise UnreadableSampleError(f"no {name} beside the frames") from error
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UnreadableSampleError(f"{name} cannot be read: {error}") from error
    if lines and len(lines[0]) == 1 and len(lines[0][0].split()) > 1:
        raise UnreadableSampleError(f"{name} has spaces between numbers, where commas are expected")
    if lines and not any(_is_number(cell) for cell in lines[0]):
        lines = lines[1:]
    if len(lines) != (frames := len(frame_names(folder))):
        raise UnreadableSampleError(f"{name} has {len(lines)} rows for {frames} frames")
    values = len(lines[0]) if values is None else values
    if not 0 < values <= _MOST_VALUES or any(len(line) != values for line in lines):
        raise UnreadableSampleError(f"{name} should have {values} numbers in each row, at most {_MOST_VALUES}")
    if not all(_is_number(cell) for line in lines for cell in line):
        raise UnreadableSampleError(f"{name} has cells that are no finite number")
    return np.array(lines, dtype=np.float64).astype(np.float32)


def _is_number(cell: str) -> bool:
    try:
        return abs(float(cell)) < _LARGEST
    except ValueError:
        return False
