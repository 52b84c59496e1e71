"""Write files: atomically, or not at all."""

import glob
import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from sslkit.contract.errors import SslkitError


@contextmanager
def write_atomically(file: Path, new_folder: bool = True) -> Iterator[BinaryIO]:
    """Open a temporary file beside `file` that takes its place, flushed to disk, when the block ends without error.

    A folder that is not there is made, or without `new_folder` a FileNotFoundError. What processes left behind that were
    killed in here is removed.
    """
    if new_folder:
        file.parent.mkdir(parents=True, exist_ok=True)
    mine = f"{file.name}.{platform.node()}."
    for other in file.parent.glob(f"{glob.escape(mine)}*.tmp"):
        process = other.name.removeprefix(mine).removesuffix(".tmp")
        if process.isdecimal() and not runs(int(process)):
            other.unlink(missing_ok=True)
    temporary = file.with_name(f"{mine}{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def output_path(out: str, *suffixes: str) -> Path:
    """Return the path to write; raises SslkitError before any work for one that can't be."""
    path = Path(out)
    if path.suffix not in suffixes:
        raise SslkitError(f"{out} should end in {' or '.join(suffixes)}", flag="out")
    if path.is_dir() or not path.parent.exists():
        raise SslkitError(
            f"cannot write {out}", "it is a folder" if path.is_dir() else f"{path.parent} does not exist", flag="out"
        )
    check_writable(path)
    return path


def check_writable(path: Path) -> None:
    """Raise SslkitError if a file or folder, which need not be there yet, cannot be written."""
    folder = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder):  # permissions do not tell everything, as of a read-only disk
            return
    except OSError as error:
        raise SslkitError(f"cannot write {path}", error.strerror or str(error), flag="out") from error


def runs(process: int) -> bool:
    """Return whether a process of this machine is running."""
    if os.name != "posix":
        return True  # asking by a signal would end it
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return True
