"""What the scaffolds of `new-task` and `new-evaluation` share: a name to check, and a folder to write."""

import keyword
import re
import shutil
from collections.abc import Collection
from pathlib import Path

from sslkit.contract.errors import SslkitError

# No folder may be called so on Windows, and runs/NAME would be one.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{number}" for port in ("com", "lpt") for number in range(1, 10))})


def check_name(name: str, reserved: Collection[str], examples: str) -> None:
    """Raise SslkitError for a name that no Python package may have, or that means something inside the new one."""
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name) or keyword.iskeyword(name):
        rule = "consist of lowercase letters, digits and _, and start with a letter"
        raise SslkitError(f"NAME: {name} should {rule}", f"such as {examples}")
    if name in _DEVICES:
        raise SslkitError(f"NAME: {name} is the name of a device on Windows", "choose another name")
    if name in reserved:
        raise SslkitError(f"NAME: {name} is already used inside the package", "choose another name")


def new_folder(out: str | None, name: str) -> Path:
    """Return the folder of the new package, by default `sslkit-NAME`; raises SslkitError if it exists."""
    folder = Path(out or f"sslkit-{name.replace('_', '-')}")
    if folder.exists():
        raise SslkitError(f"{folder} already exists", "choose another folder", flag="out")
    return folder


def write_new_folder(folder: Path, files: dict[str, str]) -> None:
    """Write files, texts by name, into a new folder; raises SslkitError, and leaves none, if it cannot be written."""
    try:
        folder.mkdir(parents=True)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise SslkitError(f"cannot write to {folder}: {error.strerror}", flag="out") from error
