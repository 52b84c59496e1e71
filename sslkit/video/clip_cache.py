"""`--cache on`: clips whose frames are decoded once and kept as bytes."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.lib.format import write_array_header_1_0
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import OpenSpec
from sslkit.data.cache import cache_error, cache_folder
from sslkit.data.index import Index
from sslkit.files import write_atomically
from sslkit.image.canvas_cache import VERSION, claim_folder
from sslkit.image.decode import CanvasFormat
from sslkit.video.reading import Frames, open_clip

_AT_ONCE = 64  # frames decoded before they are written


class CachedClip:
    """Return frames of a clip from the file that holds all of them; long ones as their middle, whatever the position."""

    def __init__(self, file: Path, aspect: float) -> None:
        self.canvases: NDArray[np.uint8] = np.load(file, mmap_mode="r")
        self.length, self.aspect = len(self.canvases), aspect

    def frames(self, numbers: NDArray[np.int64], form: CanvasFormat, position: float = 0.5) -> Frames:
        """Return some frames."""
        return Frames(np.array(self.canvases[numbers]), self.aspect)


@dataclass(frozen=True)
class ClipCache:
    """A folder with two files for each clip that was read: its aspect, and its frames `[T, side, side, 3]`."""

    folder: Path
    bytes: int  # about what all clips take

    @classmethod
    def claim(cls, index: Index, form: CanvasFormat, frames: float, limit_gigabytes: float) -> "ClipCache":
        """Make room for clips of so many frames each; raises SslkitError if they do not fit."""
        needed, limit = round(len(index) * frames * form.side**2 * 3), int(limit_gigabytes * 1e9)
        digest = blake2b(decoder_versions().encode(), digest_size=4).hexdigest()
        folder = cache_folder() / "canvases" / f"{index.key()}-clips-{form.side}-{digest}"
        problem = claim_folder(folder, "*.npy", needed, limit)
        if problem is not None:
            raise SslkitError(
                f"about {needed / 1e9:.1f} GB of frames {problem}", "raise --cache-limit, or leave --cache out", flag="cache"
            )
        return cls(folder, needed)

    @contextmanager
    def open(self, index: Index, row: int, form: CanvasFormat) -> Iterator[CachedClip]:
        """Open a clip, which is decoded first unless that was done before."""
        frames, aspect = self.folder / f"{row}.npy", self.folder / f"{row}-aspect.npy"
        if not frames.exists():
            self._decode(index, row, form, frames, aspect)
        yield CachedClip(frames, float(np.load(aspect)))

    def _decode(self, index: Index, row: int, form: CanvasFormat, frames: Path, aspect: Path) -> None:
        """Write a clip's aspect, and then its frames, a few at a time: a clip may be longer than memory."""
        with open_clip(index, row) as clip, write_atomically(frames) as stream:
            shape = (clip.length, form.side, form.side, 3)
            write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
            for start in range(0, clip.length, _AT_ONCE):
                some = clip.frames(np.arange(start, min(start + _AT_ONCE, clip.length)), form)
                _write(stream, some.canvases)
                if start == 0:
                    with write_atomically(aspect) as small:
                        np.save(small, np.array(some.aspect))


def choose_cache(index: Index, form: CanvasFormat, spec: OpenSpec, frames: float) -> tuple[ClipCache | None, tuple[str, str]]:
    """Return the cache that was asked for, and how that is printed; raises SslkitError for one that can't be."""
    if spec.cache == "compact":
        raise SslkitError("there is no compact cache of video", "use on or off", flag="cache")
    if spec.cache != "on":
        return None, ("off", "frames are decoded when needed; --cache on keeps them")
    cache = ClipCache.claim(index, form, frames, spec.cache_limit)
    reason = f"about {cache.bytes / 1e6:,.0f} MB in {cache_folder()}; of frames longer than 2:1, the middle"
    return cache, ("on", reason)


def decoder_versions() -> str:
    """Return the versions of the libraries that decode frames: other versions decode other pixels."""
    return VERSION if find_spec("av") is None else f"{VERSION}, av {version('av')}"


def _write(stream: BinaryIO, canvases: NDArray[np.uint8]) -> None:
    try:
        stream.write(canvases.tobytes())
        stream.flush()
    except OSError as error:  # a full disk, which is no fault of the clip
        raise cache_error(error) from error
