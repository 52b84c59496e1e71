"""The canvas cache: every image decoded once, kept in one memory-mapped file."""

import os
import shutil
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
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
from sslkit.image.targets import Masks
from sslkit.processes import find_place

# State of a row. What is cut is decoded every time, because each time another part of the image may be drawn.
_UNKNOWN, _STORED, _CUT = 0, 1, 2


VERSION = f"2, Pillow {PIL.__version__}"  # what decides the content of a canvas beside the image and its format


_DECODERS = ("tifffile", "imagecodecs", "pydicom", "nibabel")  # of images that Pillow does not keep


def decoder_versions(index: Index, form: CanvasFormat) -> str:
    """Return the versions of what decodes images, by which canvases of other versions are told apart."""
    if form.scale is None and index.channels in (1, 3) and index.pages is None:
        return VERSION
    installed = [name for name in _DECODERS if find_spec(name) is not None]
    return ", ".join([VERSION, *(f"{name} {version(name)}" for name in installed)])


@dataclass(frozen=True)
class CanvasBatch:
    """Some samples on their canvases; broken ones are black."""

    canvases: NDArray[Any]  # [n, side, side, C]
    aspects: NDArray[np.float32]  # [n]: width / height of the images
    positions: NDArray[np.float64]  # [n]: of the part of an image that is cut, from 0 to 1 along the long side
    masks: NDArray[np.uint8] | None  # [n, side, side]
    broken: dict[int, str]  # by place in the rows that were asked for


class Canvases:
    """Read samples as canvases, from the cache where they are in it.

    Several processes may read and fill one cache: all would write the same bytes, and a row is marked as stored only
    after it was written.
    """

    def __init__(self, index: Index, form: CanvasFormat, folder: Path | None, masks: Masks | None = None) -> None:
        self.index, self.form, self.folder, self.masks = index, form, folder, masks
        self._maps: dict[str, NDArray[Any]] | None = None

    def read(self, rows: NDArray[np.int64], draw: ReadSeed | None = None) -> CanvasBatch:
        """Return some samples. Of an image that is cut, a part is drawn by `draw`; without it the middle is returned."""
        positions = np.full(len(rows), 0.5)
        if self.folder is None:
            layout = self._layout(len(rows))
            batch: dict[str, NDArray[Any]] = {name: np.zeros(shape, dtype) for name, (dtype, shape) in layout.items()}
            missing = np.arange(len(rows))
        else:
            maps = self._open()
            missing = np.flatnonzero(maps["state"][rows] != _STORED)  # first: another process may store a row in between
            batch = {name: maps[name][rows] for name in maps if name != "state"}
        broken: dict[int, str] = {}
        self.index.prefetch(map(int, rows[missing]))
        for slot in map(int, missing):
            row = int(rows[slot])
            position = 0.5 if draw is None else float(draw.generator(row).random())
            try:
                values, is_cut = self._decode(row, position)
            except UnreadableSampleError as reason:
                broken[slot] = str(reason)
                for name, value in (("canvases", 0), ("aspects", 1), ("masks", 0)):
                    if name in batch:
                        batch[name][slot] = value
                continue
            for name, value in values.items():
                batch[name][slot] = value
                if self.folder is not None and not is_cut:
                    maps[name][row] = value
            positions[slot] = position if is_cut else 0.5
            if self.folder is not None:
                maps["state"][row] = _CUT if is_cut else _STORED
        return CanvasBatch(batch["canvases"], batch["aspects"], positions, batch.get("masks"), broken)

    def _decode(self, row: int, position: float) -> tuple[dict[str, Any], bool]:
        """Return what is kept of a sample, by the name of its map, and whether it is cut."""
        decoded = read_canvas(self.index, row, self.form, position)
        values: dict[str, Any] = {"canvases": decoded.canvas, "aspects": decoded.aspect}
        if self.masks is not None:
            values["masks"] = self.masks.read(row, self.form, decoded.aspect, position if decoded.is_cut else 0.5)
        return values, decoded.is_cut

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return the number of worker processes for a value of `--workers`, and the reason."""
        if requested != "auto":
            return int(requested), "as given"
        if self.index.array is not None:
            return 0, "arrays need no decoding"
        state = None if self.folder is None else self._open()["state"]
        if state is not None and (state == _STORED).all():
            return 0, "all canvases are cached"
        processes = find_place(os.environ).local_size
        cut = 0 if state is None or (state == _UNKNOWN).any() else int((state == _CUT).sum())
        reason = (
            f"one per core: {cut:,} images longer than 2:1 are decoded anew" if cut else "one per core, for the first epoch"
        )
        return min(max(1, (os.cpu_count() or 1) // processes), 8), reason

    @property
    def bytes(self) -> int:
        """Return the bytes of all canvases."""
        return _bytes(self.index, self.form, self.masks)

    def _layout(self, rows: int) -> dict[str, tuple[type[Any], tuple[int, ...]]]:
        side = self.form.side
        masks = {} if self.masks is None else {"masks": (np.uint8, (rows, side, side))}
        return {
            "canvases": (self.form.dtype, (rows, side, side, self.index.channels)),
            "aspects": (np.float32, (rows,)),
            **masks,
            "state": (np.uint8, (rows,)),
        }

    def _open(self) -> dict[str, NDArray[Any]]:
        assert self.folder is not None
        if self._maps is None:
            self._maps = _open_maps(self.folder, self._layout(len(self.index)))
        return self._maps

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}  # a worker process opens the files itself


def _bytes(index: Index, form: CanvasFormat, masks: Masks | None) -> int:
    values = index.channels * np.dtype(form.dtype).itemsize + (masks is not None)
    return len(index) * form.side**2 * values


def choose_folder(
    index: Index, form: CanvasFormat, mode: str, limit_gigabytes: float, masks: Masks | None = None
) -> tuple[Path | None, tuple[str, str]]:
    """Return the cache folder for these canvases (None: no cache), and on or off with the reason, making room for it.

    `--cache on` that does not fit is an SslkitError; `auto` goes without.
    """
    if mode == "off":
        return None, ("off", "as given")
    if index.array is not None and form.scale is None and index.array.shape[1:3] == (form.side, form.side):
        return None, ("off", "the array is its own cache")
    needed = _bytes(index, form, masks)
    content = f"{decoder_versions(index, form)} {index.channels} {form.scale} {masks and masks.key()}"
    digest = blake2b(content.encode(), digest_size=4).hexdigest()
    folder = cache_folder() / "canvases" / f"{index.key()}-{form.geometry}-{form.side}-{digest}"
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
        make_room(needed, limit, folder)
        folder.touch()  # its modification time says when it was last used
    except OSError as error:
        raise SslkitError(f"cannot write to {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE", flag="cache") from error
    free = shutil.disk_usage(folder).free
    if not (folder / "canvases.npy").exists() and needed > 0.9 * free:
        if mode == "on":
            raise SslkitError(f"canvases take {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB left", flag="cache")
        return None, ("off", f"{needed / 1e9:.1f} GB of canvases do not fit the free disk")
    return folder, ("on", f"{needed / 1e6:.0f} MB in {cache_folder()}")


def _open_maps(folder: Path, layout: dict[str, tuple[type[Any], tuple[int, ...]]]) -> dict[str, NDArray[Any]]:
    """Open all maps for reading and writing; create all, empty, unless all are there and whole."""
    with FileLock(folder / "lock"):  # a process must not create what another one has just opened
        maps = {name: _open_map(folder / f"{name}.npy", *form) for name, form in layout.items()}
        if any(opened is None for opened in maps.values()):
            (folder / "state.npy").unlink(missing_ok=True)  # first: nothing may seem to be stored in a new file
            maps = {name: _create_map(folder / f"{name}.npy", *form) for name, form in layout.items()}
    return {name: opened for name, opened in maps.items() if opened is not None}


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
