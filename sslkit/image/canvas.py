"""The canvas cache: every image decoded once, kept as uint8 in one memory-mapped file."""

import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data.cache import cache_folder, make_room
from sslkit.data.index import Index
from sslkit.image.decode import read_canvas
from sslkit.image.pixel_range import PixelRange

_UNKNOWN, _STORED = 0, 1


class Canvases:
    """Read samples as uint8 canvases `[n, canvas, canvas, C]`, from the cache where they are in it.

    Several processes may read and fill one cache: all would write the same bytes, and a row is marked as stored only
    after it was written.
    """

    def __init__(self, index: Index, canvas: int, folder: Path | None, scale: PixelRange | None = None) -> None:
        self.index, self.canvas, self.folder, self.scale = index, canvas, folder, scale
        self._maps: tuple[NDArray[np.uint8], NDArray[np.uint8]] | None = None

    def read(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.uint8], dict[int, str]]:
        """Return canvases `[len(rows), canvas, canvas, C]` and, by place in `rows`, why some are broken (left black)."""
        if self.folder is None:
            images = np.zeros((len(rows), *self._shape), dtype=np.uint8)
            missing = np.arange(len(rows))
        else:
            canvases, state = self._open()
            missing = np.flatnonzero(state[rows] != _STORED)  # first: another process may store a row in between
            images = canvases[rows]
        broken: dict[int, str] = {}
        for place in missing:
            try:
                images[place] = read_canvas(self.index, int(rows[place]), self.canvas, self.scale)
            except UnreadableSampleError as reason:
                broken[int(place)] = str(reason)
                images[place] = 0
                continue
            if self.folder is not None:
                canvases[rows[place]] = images[place]
                state[rows[place]] = _STORED
        return images, broken

    def complete(self) -> bool:
        """Return whether every sample is in the cache, so that nothing has to be decoded."""
        return self.folder is not None and bool((self._open()[1] == _STORED).all())

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return the number of worker processes for a value of `--workers`, and the reason."""
        if requested != "auto":
            return int(requested), "as given"
        if self.index.array is not None:
            return 0, "arrays need no decoding"
        if self.complete():
            return 0, "all canvases are cached"
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this job, on this machine
        return min(max(1, (os.cpu_count() or 1) // processes), 8), "one per core, for the first epoch"

    @property
    def bytes(self) -> int:
        """Return the bytes of all canvases."""
        return len(self.index) * math.prod(self._shape)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.canvas, self.canvas, self.index.channels)

    def _open(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        assert self.folder is not None
        if self._maps is None:
            self._maps = _open_maps(self.folder, (len(self.index), *self._shape))
        return self._maps

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}  # a worker process opens the files itself


def choose_folder(
    index: Index, canvas: int, mode: str, limit_gigabytes: float, scale: PixelRange | None = None
) -> tuple[Path | None, tuple[str, str]]:
    """Return the cache folder for these canvases (None: no cache), and on or off with the reason, making room for it.

    `--cache on` that does not fit is an SslkitError; `auto` goes without.
    """
    if mode == "off":
        return None, ("off", "as given")
    if index.array is not None and scale is None and index.array.shape[1:3] == (canvas, canvas):
        return None, ("off", "the array is its own cache")
    needed = len(index) * canvas * canvas * index.channels
    kind = f"{canvas}" if index.channels == 3 else f"{canvas}x{index.channels}"
    folder = cache_folder() / "canvases" / f"{index.key()}-{kind}{'' if scale is None else f'-{scale}'}"
    limit = int(limit_gigabytes * 1e9)
    if needed > limit:
        if mode == "on":
            raise SslkitError(
                f"canvases take {needed / 1e9:.1f} GB, more than --cache-limit {limit_gigabytes:g}",
                "raise the limit",
                flag="cache",
            )
        return None, ("off", f"{needed / 1e9:.1f} GB of canvases exceed --cache-limit {limit_gigabytes:g}")
    try:
        make_room(needed, limit, keep=folder)
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()  # its modification time says when it was last used
    except OSError as error:
        raise SslkitError(f"cannot write to {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE", flag="cache") from error
    free = shutil.disk_usage(folder).free
    if not (folder / "canvases.npy").exists() and needed > 0.9 * free:
        if mode == "on":
            raise SslkitError(f"canvases take {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left", flag="cache")
        return None, ("off", f"{needed / 1e9:.1f} GB of canvases do not fit the free disk")
    return folder, ("on", f"{needed / 1e6:.0f} MB in {cache_folder()}")


def _open_maps(folder: Path, shape: tuple[int, ...]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Open canvases and state for reading and writing; create both, empty, unless both are there and whole."""
    files = (folder / "canvases.npy", folder / "state.npy")
    shapes = (shape, shape[:1])
    with FileLock(folder / "lock"):  # a process must not create what another one has just opened
        canvases, state = (_open_map(file, map_shape) for file, map_shape in zip(files, shapes, strict=True))
        if canvases is None or state is None:
            files[1].unlink(missing_ok=True)  # first: nothing may seem to be stored in a new file
            canvases, state = (_create_map(file, map_shape) for file, map_shape in zip(files, shapes, strict=True))
    return canvases, state


def _create_map(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Create an array of zeros, and its place on the disk: a disk that is full later would end the process by a signal."""
    try:
        created = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(file, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise SslkitError(
            f"cannot write to {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE, or --cache off", flag="cache"
        ) from error
    return np.asarray(created)


def _open_map(file: Path, shape: tuple[int, ...]) -> NDArray[np.uint8] | None:
    try:
        opened = np.lib.format.open_memmap(file, mode="r+")
    except (FileNotFoundError, ValueError):  # not there, or cut off when a machine went down
        return None
    return np.asarray(opened) if opened.shape == shape and opened.dtype == np.uint8 else None
