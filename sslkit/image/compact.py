"""The compact cache: canvases encoded as JPEG, in one file."""

import errno
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sslkit.image.canvas_files import open_maps

_PLACE = np.dtype([("start", "<i8"), ("bytes", "<i4"), ("checksum", "<u4"), ("aspect", "<f4")])  # bytes 0: not stored


class CompactStore:
    """Encoded samples with their aspects; several processes may read and fill it.

    A process appends a sample's bytes, then notes their place. One that is killed in between leaves bytes that nobody reads,
    and what does not have its checksum, after a machine went down, counts as missing.
    """

    def __init__(self, folder: Path, samples: int, limit: int) -> None:
        """Open the store in a folder, which grows to `limit` bytes at most: what does not fit is not kept."""
        self.folder, self.samples, self.limit = folder, samples, limit
        self._map: NDArray[Any] | None = None

    def lacks(self, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Return which of some rows are not stored."""
        missing: NDArray[np.bool_] = self._places()["bytes"][rows] == 0
        return missing

    def read(self, row: int) -> tuple[bytearray, float] | None:
        """Return the bytes and the aspect of a sample, None if it is missing."""
        place = self._places()[row]
        if place["bytes"] <= 0:
            return None
        data = bytearray(int(place["bytes"]))
        try:
            with open(self._file, "rb", buffering=0) as stream:
                stream.seek(int(place["start"]))
                stream.readinto(data)
        except FileNotFoundError:
            return None
        return (data, float(place["aspect"])) if _checksum(row, data) == place["checksum"] else None

    def write(self, row: int, data: bytes, aspect: float) -> None:
        """Store a sample if the limit and the disk have room for it."""
        try:
            with open(self._file, "ab", buffering=0) as stream:
                if os.fstat(stream.fileno()).st_size + len(data) > self.limit or stream.write(data) != len(data):
                    return
                start = stream.tell() - len(data)  # what is appended at once is in one piece
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                return
            raise
        places = self._places()
        places["start"][row], places["checksum"][row], places["aspect"][row] = start, _checksum(row, data), aspect
        places["bytes"][row] = len(data)

    @property
    def _file(self) -> Path:
        return self.folder / "canvases.bin"

    def _places(self) -> NDArray[Any]:
        if self._map is None:
            maps = open_maps(self.folder, {"places": (_PLACE, (self.samples,))}, first="places")
            self._map = maps["places"]
        return self._map

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}  # a worker process opens the file itself


def _checksum(row: int, data: bytes | bytearray) -> int:
    return zlib.crc32(data, row & 0xFFFFFFFF)
