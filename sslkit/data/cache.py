"""The cache folder: indexes and canvases, bounded, never in the user's data."""

import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

from filelock import FileLock

# What numpy raises for a damaged .npy or .npz; zipfile's NotImplementedError is a RuntimeError.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error)


_BOUNDED = ("canvases", "texts", "features")  # what --cache-limit is about


def cache_folder() -> Path:
    """Return `$SSLKIT_CACHE`, by default `$XDG_CACHE_HOME/sslkit`."""
    if "SSLKIT_CACHE" in os.environ:
        return Path(os.environ["SSLKIT_CACHE"])
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sslkit"


@dataclass(frozen=True)
class Stored:
    """Describe the canvases, the words or the features of one data set in the cache."""

    folder: Path
    bytes: int
    used: float  # time of last use


def stored() -> list[Stored]:
    """List what was computed of data into the cache, least recently used first."""
    folders = [path for kind in _BOUNDED for path in (cache_folder() / kind).glob("*") if path.is_dir()]
    return sorted((Stored(path, _size(path), path.stat().st_mtime) for path in folders), key=lambda stored: stored.used)


def make_room(needed: int, limit: int, keep: Path) -> None:
    """Remove what was used least recently until `needed` more bytes stay within `limit`; `keep` is spared."""
    cache_folder().mkdir(parents=True, exist_ok=True)
    with FileLock(cache_folder() / "lock"):  # processes of one job all come here
        entries = stored()
        total = sum(entry.bytes for entry in entries if entry.folder != keep)
        for entry in entries:
            if total + needed <= limit:
                return
            if entry.folder != keep:
                shutil.rmtree(entry.folder, ignore_errors=True)
                total -= entry.bytes


def clear() -> int:
    """Remove everything in the cache and return how many bytes that were."""
    size = _size(cache_folder())
    for name in ("index", *_BOUNDED):
        shutil.rmtree(cache_folder() / name, ignore_errors=True)
    return size


def _size(folder: Path) -> int:
    return sum(os.path.getsize(file) for file in folder.rglob("*") if file.is_file())
