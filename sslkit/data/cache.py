"""The cache folder: indexes and canvases, bounded, never in the user's data.

A folder becomes the cache by a marker file, written when it is new or empty; without the marker nothing is written to a
folder, or removed from it.
"""

import atexit
import os
import platform
import shutil
import tempfile
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.files import runs, write_atomically

# What numpy raises for a damaged .npy or .npz; zipfile's NotImplementedError is a RuntimeError. A header is Python's syntax.
UNREADABLE = (OSError, ValueError, EOFError, RuntimeError, BadZipFile, zlib.error, SyntaxError, TokenError, MemoryError)


_BOUNDED = ("canvases", "tables", "texts", "features")  # what --cache-limit is about


MARKER = "CACHEDIR.TAG"  # by which backups, too, recognize a cache: https://bford.info/cachedir
_MARK = b"Signature: 8a477f597d28d172789f06886806bc55\n# A cache of sslkit; `sslkit cache --clear` empties it.\n"


def cache_folder() -> Path:
    """Return `$SSLKIT_CACHE`, by default `$XDG_CACHE_HOME/sslkit`; without a home folder one for temporary files.

    Raises SslkitError if the variable is empty.
    """
    chosen = os.environ.get("SSLKIT_CACHE")
    if chosen is not None:
        if not chosen.strip():
            raise SslkitError("SSLKIT_CACHE is empty", "name a folder, or unset it")
        return Path(chosen)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sslkit"
    except RuntimeError:  # neither HOME nor an entry for this user, as in a container
        return _temporary_folder()


def _temporary_folder() -> Path:
    """Return the user's own cache where there is no home folder, on systems that number their users."""
    return Path(tempfile.gettempdir(), f"sslkit-{os.getuid()}" if hasattr(os, "getuid") else "sslkit")


def claim_cache() -> Path:
    """Return the cache folder, made and marked if it is new or empty.

    Raises SslkitError for a folder that holds other files, or is another user's; OSError if it can't be written.
    """
    folder = cache_folder()
    temporary = folder == _temporary_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    others = [entry.name for entry in folder.iterdir() if entry.name != "lost+found" and not entry.name.startswith(MARKER)]
    hint = "set SSLKIT_CACHE to a new or empty folder"
    # Where everybody may make a folder of any name.
    if temporary and hasattr(os, "getuid") and folder.stat().st_uid != os.getuid():
        raise SslkitError(f"the cache folder {folder} belongs to another user", hint)
    if (folder / MARKER).is_file():  # asked last: another process may write it, and files, at this moment
        return folder
    if others:
        raise SslkitError(f"the cache folder {folder} holds other files, such as {others[0]}", hint)
    if temporary:
        say(f"there is no home folder; the cache is {folder}")
    with write_atomically(folder / MARKER) as stream:
        stream.write(_MARK)
    return folder


@dataclass(frozen=True)
class Stored:
    """Describe the canvases, the unpacked samples, the words or the features of one data set in the cache."""

    folder: Path
    bytes: int
    used: float  # time of last use


def stored() -> list[Stored]:
    """List what was computed of data into the cache, least recently used first; nothing in a folder without the marker."""
    if not (cache_folder() / MARKER).is_file():
        return []
    folders = [path for kind in _BOUNDED for path in (cache_folder() / kind).glob("*") if path.is_dir()]
    return sorted((Stored(path, _size(path), path.stat().st_mtime) for path in folders), key=lambda stored: stored.used)


def make_room(needed: int, limit: int, folder: Path) -> None:
    """Remove what was used least recently until `folder` may have `needed` bytes within `limit`.

    Features and samples have the limit each, and never make room for each other. What a process uses, this one or another
    that runs, stays.
    """
    with FileLock(claim_cache() / "lock"):  # processes of one job all come here
        folder.mkdir(parents=True, exist_ok=True)
        _mark_used(folder)
        entries = [
            entry for entry in stored() if entry.folder != folder and _holds_features(entry.folder) == _holds_features(folder)
        ]
        total = sum(entry.bytes for entry in entries)
        for entry in entries:
            if total + needed <= limit:
                return
            if not _is_used(entry.folder):
                shutil.rmtree(entry.folder, ignore_errors=True)
                total -= entry.bytes


def _holds_features(folder: Path) -> bool:
    return folder.parent.name == "features"


_USE = "use."  # what marks are called, before the machine's name and a process's number
_STALE = 7 * 24 * 3600  # seconds after which another machine's mark counts for nothing


def _mark_used(folder: Path) -> None:
    mark = folder / f"{_USE}{platform.node()}.{os.getpid()}"
    mark.touch()
    atexit.register(mark.unlink, missing_ok=True)


def _is_used(folder: Path) -> bool:
    """Return whether a process that runs has marked a folder; where nobody can tell, whether it did so within a week.

    That is on another machine, and on Windows.
    """
    for mark in folder.glob(f"{_USE}*"):
        node, _, process = mark.name.removeprefix(_USE).rpartition(".")
        if node == platform.node() and os.name == "posix":
            if process.isdecimal() and runs(int(process)):
                return True
        elif time.time() - mark.stat().st_mtime < _STALE:
            return True
    return False


def cache_error(error: OSError, hint: str = "set SSLKIT_CACHE", flag: str = "cache") -> SslkitError:
    """Return the error for a cache that cannot be written; what NumPy raises has a text, and no reason of the system's."""
    return SslkitError(f"cannot write to {cache_folder()}: {error.strerror or error}", hint, flag=flag)


def store_arrays(file: Path, **arrays: NDArray[Any]) -> None:
    """Write arrays to a file in the cache; raises SslkitError if that is not possible."""
    try:
        claim_cache()
        with write_atomically(file) as stream:
            np.savez(stream, allow_pickle=False, **arrays)
    except OSError as error:
        raise SslkitError(f"cannot write to the cache {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE") from error


def read_arrays(file: Path, *names: str) -> list[NDArray[Any]] | None:
    """Return arrays from a file in the cache, None if it is missing or damaged."""
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as saved:
            return [saved[name] for name in names]
    except (*UNREADABLE, KeyError):
        return None


def clear() -> int:
    """Remove everything in the cache and return how many bytes that were.

    Raises SslkitError for a folder without the marker.
    """
    folder = cache_folder()
    if not folder.exists():
        return 0
    if not (folder / MARKER).is_file():
        raise SslkitError(f"{folder} is no cache of sslkit: it has no {MARKER}", "nothing was removed")
    size = _size(folder)
    for name in ("index", "schemas", *_BOUNDED):
        shutil.rmtree(folder / name, ignore_errors=True)
    return size


def _size(folder: Path) -> int:
    return sum(os.path.getsize(file) for file in folder.rglob("*") if file.is_file())
