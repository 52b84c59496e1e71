"""The cache folder: indexes and canvases, bounded, never in the user's data."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO


def cache_folder() -> Path:
    """Return `$SSLKIT_CACHE`, by default `$XDG_CACHE_HOME/sslkit`."""
    if "SSLKIT_CACHE" in os.environ:
        return Path(os.environ["SSLKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sslkit"


@contextmanager
def write_atomically(file: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside `file` that takes its place, flushed to disk, when the block ends without error."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Stored:
    """Describe one canvas file in the cache."""

    folder: Path
    bytes: int
    used: float  # time of last use


def stored_canvases() -> list[Stored]:
    """List the canvas files in the cache, least recently used first."""
    folders = [path for path in (cache_folder() / "canvases").glob("*") if path.is_dir()]
    return sorted((Stored(path, _size(path), path.stat().st_mtime) for path in folders), key=lambda stored: stored.used)


def make_room(needed: int, limit: int, keep: Path) -> None:
    """Remove the least recently used canvases until `needed` more bytes stay within `limit`; `keep` is spared."""
    stored = stored_canvases()
    total = sum(entry.bytes for entry in stored if entry.folder != keep)
    for entry in stored:
        if total + needed <= limit:
            return
        if entry.folder != keep:
            shutil.rmtree(entry.folder)
            total -= entry.bytes


def clear() -> int:
    """Remove everything in the cache and return how many bytes that were."""
    size = _size(cache_folder())
    for name in ("index", "canvases"):
        shutil.rmtree(cache_folder() / name, ignore_errors=True)
    return size


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
