"""Reading samples as canvases: decoded once and kept in a cache, or decoded every time."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import UnreadableSampleError
from sslkit.contract.source import ReadSeed
from sslkit.data.index import Index
from sslkit.data.process_share import available_cores, available_memory
from sslkit.data.worker_process import zeros
from sslkit.image.canvas_files import Layout, open_maps, write_row
from sslkit.image.compact import CompactStore
from sslkit.image.decode import CanvasFormat, Decoded, read_canvas
from sslkit.image.jpeg import decode_encoded, encode_jpeg
from sslkit.image.targets import Masks

# State of a row. What is cut is decoded every time, because each time another part of the image may be drawn.
_UNKNOWN, _STORED, _CUT = 0, 1, 2
_ASSUMED_MEMORY = 8 * 2**30  # bytes, where it is unknown


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

    def __init__(
        self,
        index: Index,
        form: CanvasFormat,
        folder: Path | None,
        masks: Masks | None = None,
        compact: CompactStore | None = None,
        cache_bytes: int = 0,
    ) -> None:
        """Keep canvases in a folder, or compact, or not at all; once all are kept that takes `cache_bytes`."""
        self.index, self.form, self.folder, self.masks, self.compact = index, form, folder, masks, compact
        self.cache_bytes = cache_bytes
        self._maps: dict[str, NDArray[Any]] | None = None

    def read(self, rows: NDArray[np.int64], draw: ReadSeed | None = None) -> CanvasBatch:
        """Return some samples. Of an image that is cut, a part is drawn by `draw`; without it the middle is returned."""
        positions = np.full(len(rows), 0.5)
        maps = {} if self.folder is None else self._open()
        # First: another process may store a row in between.
        stored = maps["state"][rows] == _STORED if maps else np.zeros(len(rows), dtype=bool)
        batch: dict[str, NDArray[Any]]
        if stored.all():
            batch = {name: maps[name][rows] for name in maps if name != "state"}
        else:  # what is not stored is not looked up: that would get pages of the file
            batch = {name: zeros(shape, dtype) for name, (dtype, shape) in self._layout(len(rows)).items()}
            for name in maps.keys() - {"state"}:
                batch[name][stored] = maps[name][rows[stored]]
        missing = np.flatnonzero(~stored)
        broken: dict[int, str] = {}
        self.index.prefetch(map(int, rows[missing] if self.compact is None else rows[self.compact.lacks(rows)]))
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
            positions[slot] = position if is_cut else 0.5
            if self.folder is not None:
                self._store(row, values, is_cut)
        return CanvasBatch(batch["canvases"], batch["aspects"], positions, batch.get("masks"), broken)

    def _decode(self, row: int, position: float) -> tuple[dict[str, Any], bool]:
        """Return what is kept of a sample, by the name of its map, and whether it is cut."""
        decoded = read_canvas(self.index, row, self.form, position) if self.compact is None else self._compact(row, position)
        values: dict[str, Any] = {"canvases": decoded.canvas, "aspects": decoded.aspect}
        if self.masks is not None:
            values["masks"] = self.masks.read(row, self.form, decoded.aspect, position if decoded.is_cut else 0.5)
        return values, decoded.is_cut

    def _compact(self, row: int, position: float) -> Decoded:
        """Return a sample as the compact cache keeps it, the first time too: an epoch is like the next."""
        assert self.compact is not None
        stored = self.compact.read(row)
        if stored is None:
            decoded = read_canvas(self.index, row, self.form, position)
            if decoded.is_cut:
                return decoded
            data, aspect = encode_jpeg(decoded.canvas), decoded.aspect
            self.compact.write(row, data, aspect)
            stored = bytearray(data), float(np.float32(aspect))
        return Decoded(decode_encoded(stored[0], self.index.channels), stored[1], is_cut=False)

    def _store(self, row: int, values: dict[str, Any], is_cut: bool) -> None:
        maps = self._open()
        if not is_cut:
            assert self.folder is not None
            for name, value in values.items():
                if np.ndim(value):
                    write_row(self.folder / f"{name}.npy", maps[name], row, value)
                else:
                    maps[name][row] = value
        maps["state"][row] = _CUT if is_cut else _STORED

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return the number of worker processes for a value of `--workers`, and the reason."""
        if requested != "auto":
            return int(requested), "as given"
        if self.index.array is not None:
            return 0, "arrays need no decoding"
        cores = available_cores()
        if self.folder is None:
            files = "images" if self.compact is None else "compact canvases"
            return cores, f"one per core: {files} are decoded in every epoch"
        state = self._open()["state"]
        if (state == _UNKNOWN).any():
            return cores, "one per core, until all images were decoded once"
        cut = int((state == _CUT).sum())
        if cut:
            return cores, f"one per core: {cut:,} images longer than 2:1 are decoded anew"
        if self.cache_bytes > (available_memory() or _ASSUMED_MEMORY) / 2:
            return min(max(cores // 4, 2), 4), "to read cached canvases, which exceed half of the memory"
        return 0, "all canvases are cached"

    def _layout(self, rows: int) -> Layout:
        side = self.form.side
        masks: Layout = {} if self.masks is None else {"masks": (np.uint8, (rows, side, side))}
        return {
            "canvases": (self.form.dtype, (rows, side, side, self.index.channels)),
            "aspects": (np.float32, (rows,)),
            **masks,
            "state": (np.uint8, (rows,)),
        }

    def _open(self) -> dict[str, NDArray[Any]]:
        assert self.folder is not None
        if self._maps is None:
            self._maps = open_maps(self.folder, self._layout(len(self.index)), first="state")
        return self._maps

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": None}  # a worker process opens the files itself
