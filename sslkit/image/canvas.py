"""The canvas cache: every image decoded once, kept in one memory-mapped file."""

import os
import shutil
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.source import ReadSeed
from sslkit.data.cache import cache_folder, make_room
from sslkit.data.index import Index
from sslkit.image.decode import CanvasFormat, read_canvas

# State of a row. What is cut is decoded every time, because each time another part of the image may be drawn.
_UNKNOWN, _STORED, _CUT = 0, 1, 2


VERSION = f"2, Pillow {PIL.__version__}"  # what decides the content of a canvas beside the image and its format


Maps = tuple[NDArray[Any], NDArray[np.float32], NDArray[np.uint8]]  # canvases, aspects, states


class Canvases:
    """Read samples as canvases `[n, side, side, C]`, from the cache where they are in it.

    Several processes may read and fill one cache: all would write the same bytes, and a row is marked as stored only
    after it was written.
    """

    def __init__(self, index: Index, form: CanvasFormat, folder: Path | None) -> None:
        self.index, self.form, self.folder = index, form, folder
        self._maps: Maps | None = None

    def read(
        self, rows: NDArray[np.int64], draw: ReadSeed | None = None
    ) -> tuple[NDArray[Any], NDArray[np.float32], dict[int, str]]:
        """Return canvases `[n, side, side, C]`, the images' width / height, and, by place in `rows`, why some are broken.

        Those are black. Of an image that is cut, a part is drawn by `draw`; without it the middle is returned.
        """
        if self.folder is None:
            images: NDArray[Any] = np.zeros((len(rows), *self._shape), dtype=self.form.dtype)
            aspects = np.ones(len(rows), dtype=np.float32)
            missing = np.arange(len(rows))
        else:
            canvases, all_aspects, state = self._open()
            missing = np.flatnonzero(state[rows] != _STORED)  # first: another process may store a row in between
            images, aspects = canvases[rows], all_aspects[rows]
        broken: dict[int, str] = {}
        self.index.fetch_ahead(map(int, rows[missing]))
        for place in missing:
            row = int(rows[place])
            try:
                place_of_part = 0.5 if draw is None else float(draw.generator(row).random())
                decoded = read_canvas(self.index, row, self.form, place_of_part)
            except UnreadableSampleError as reason:
                broken[int(place)] = str(reason)
                images[place], aspects[place] = 0, 1
                continue
            images[place], aspects[place] = decoded.canvas, decoded.aspect
            if self.folder is not None:
                if not decoded.is_cut:
                    canvases[row], all_aspects[row] = decoded.canvas, decoded.aspect
                state[row] = _CUT if decoded.is_cut else _STORED
        return images, aspects, broken

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return the number of worker processes for a value of `--workers`, and the reason."""
        if requested != "auto":
            return int(requested), "as given"
        if self.index.array is not None:
            return 0, "arrays need no decoding"
        state = None if self.folder is None else self._open()[2]
        if state is not None and (state == _STORED).all():
            return 0, "all canvases are cached"
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # of this job, on this machine
        cut = 0 if state is None or (state == _UNKNOWN).any() else int((state == _CUT).sum())
        reason = (
            f"one per core: {cut:,} images longer than 2:1 are decoded anew" if cut else "one per core, for the first epoch"
        )
        return min(max(1, (os.cpu_count() or 1) // processes), 8), reason

    @property
    def bytes(self) -> int:
        """Return the bytes of all canvases."""
        return _bytes(self.index, self.form)

    @property
    def _shape(self) -> tuple[int, int, int]:
        return (self.form.side, self.form.side, self.index.channels)

    def _open(self) -> Maps:
        assert self.folder is not None
        if self._maps is None:
            self._maps = _open_maps(self.folder, (len(self.index), *self._shape), self.form.dtype)
        return self._maps

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}  # a worker process opens the files itself


def _bytes(index: Index, form: CanvasFormat) -> int:
    return len(index) * form.side**2 * index.channels * np.dtype(form.dtype).itemsize


def choose_folder(index: Index, form: CanvasFormat, mode: str, limit_gigabytes: float) -> tuple[Path | None, tuple[str, str]]:
    """Return the cache folder for these canvases (None: no cache), and on or off with the reason, making room for it.

    `--cache on` that does not fit is an SslkitError; `auto` goes without.
    """
    if mode == "off":
        return None, ("off", "as given")
    if index.array is not None and form.scale is None and index.array.shape[1:3] == (form.side, form.side):
        return None, ("off", "the array is its own cache")
    needed = _bytes(index, form)
    content = blake2b(f"{VERSION} {index.channels} {form.scale}".encode(), digest_size=4).hexdigest()
    folder = cache_folder() / "canvases" / f"{index.key()}-{form.geometry}-{form.side}-{content}"
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
        make_room(needed, limit, keep={folder, *(Path(shard).parent for shard in index.shards)})
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


def _open_maps(folder: Path, shape: tuple[int, ...], dtype: type[Any]) -> Maps:
    """Open canvases, aspects and states for reading and writing; create all, empty, unless all are there and whole."""
    layout: dict[str, tuple[type[Any], tuple[int, ...]]] = {
        "canvases": (dtype, shape),
        "aspects": (np.float32, shape[:1]),
        "state": (np.uint8, shape[:1]),
    }
    with FileLock(folder / "lock"):  # a process must not create what another one has just opened
        maps = [_open_map(folder / f"{name}.npy", *form) for name, form in layout.items()]
        if any(opened is None for opened in maps):
            (folder / "state.npy").unlink(missing_ok=True)  # first: nothing may seem to be stored in a new file
            maps = [_create_map(folder / f"{name}.npy", *form) for name, form in layout.items()]
    canvases, aspects, state = maps
    assert canvases is not None and aspects is not None and state is not None
    return canvases, aspects, state


def _create_map(file: Path, dtype: type[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """Create an array of zeros, and its place on the disk: a disk that is full later would end the process by a signal."""
    try:
        created = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=shape)
        if hasattr(os, "posix_fallocate"):
            with open(file, "r+b") as stream:
                os.posix_fallocate(stream.fileno(), 0, file.stat().st_size)
    except OSError as error:
        file.unlink(missing_ok=True)
        raise SslkitError(
            f"cannot write to {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE, or --cache off", flag="cache"
        ) from error
    return np.asarray(created)


def _open_map(file: Path, dtype: type[Any], shape: tuple[int, ...]) -> NDArray[Any] | None:
    try:
        opened = np.lib.format.open_memmap(file, mode="r+")
    except (FileNotFoundError, ValueError):  # not there, or cut off when a machine went down
        return None
    return np.asarray(opened) if opened.shape == shape and opened.dtype == dtype else None
