"""Files of the canvas cache: arrays that are mapped into memory, which several processes read and fill."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import DTypeLike, NDArray

from sslkit.data.cache import cache_error

Layout = dict[str, tuple[DTypeLike, tuple[int, ...]]]  # type and shape of each map, by its name


def write_row(file: Path, mapped: NDArray[Any], row: int, value: NDArray[Any]) -> None:
    """Write a row of a map's file, which appears in the map: in a third of the time that the map takes to get new pages."""
    content, header = np.ascontiguousarray(value, dtype=mapped.dtype), file.stat().st_size - mapped.nbytes
    with open(file, "r+b", buffering=0) as stream:
        stream.seek(header + row * content.nbytes)
        if stream.write(content.data) != content.nbytes:
            raise OSError(f"{file} could not be written")


def open_maps(folder: Path, layout: Layout, first: str) -> dict[str, NDArray[Any]]:
    """Open all maps for reading and writing; create all, empty, unless all are there and whole.

    Of maps that are created anew, `first`, which says what is stored, is removed before the others change.
    """
    with FileLock(folder / "lock"):  # a process must not create what another one has just opened
        maps = {name: _open_map(folder / f"{name}.npy", *form) for name, form in layout.items()}
        if any(opened is None for opened in maps.values()):
            maps.clear()  # closed: Windows removes no file that is mapped
            (folder / f"{first}.npy").unlink(missing_ok=True)  # nothing may seem to be stored in a new file
            maps = {name: _create_map(folder / f"{name}.npy", *form) for name, form in layout.items()}
    return {name: opened for name, opened in maps.items() if opened is not None}


def _create_map(file: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any]:
    """Create an array of zeros, and its place on the disk: a disk that is full later would end the process by a signal."""
    try:
        created = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(file, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise cache_error(error, "set SSLKIT_CACHE, or --cache off") from error
    return np.asarray(created)


def _open_map(file: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        opened = np.lib.format.open_memmap(file, mode="r+")
    except (FileNotFoundError, ValueError):  # not there, or cut off when a machine went down
        return None
    return np.asarray(opened) if opened.shape == shape and opened.dtype == dtype else None
