"""Hide from sslkit what only POSIX or Linux has, and start workers by `spawn`: this folder comes first on PYTHONPATH.

Other packages see the system as it is, because they ask `sys.platform` and not whether a name exists.
"""

import builtins
import io
import multiprocessing
import os
import signal
import sys
from types import ModuleType
from typing import Any

from posix_names import MODULES, NAMES

_OURS = {"sslkit", "sslkit_plugins"}
_FOLDERS = ("/proc", "/sys", "/dev/shm")


def _without_posix(module: ModuleType) -> ModuleType:
    stripped = ModuleType(module.__name__)
    stripped.__dict__.update({name: value for name, value in vars(module).items() if name not in NAMES[module.__name__]})
    return stripped


_STRIPPED = {module.__name__: _without_posix(module) for module in (os, signal)}
_STRIPPED["os"].name = "nt"  # type: ignore[attr-defined]
_import, _open, _access, _isdir = builtins.__import__, io.open, os.access, os.path.isdir


def _hidden(path: Any) -> bool:
    return isinstance(path, str | os.PathLike) and os.fspath(path).startswith(_FOLDERS)


def _import_for(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> Any:
    if globals is not None and str(globals.get("__name__")).partition(".")[0] in _OURS:
        if name in MODULES:
            raise ModuleNotFoundError(f"no {name} on this system", name=name)
        if name in _STRIPPED:
            return _STRIPPED[name]
    return _import(name, globals, locals, fromlist, level)


def _open_visible(file: Any, *arguments: Any, **options: Any) -> Any:
    if _hidden(file):
        raise FileNotFoundError(2, "no such file on this system", file)
    return _open(file, *arguments, **options)


builtins.__import__ = _import_for
builtins.open = io.open = _open_visible  # the second is pathlib's
_STRIPPED["os"].access = lambda path, mode: not _hidden(path) and _access(path, mode)  # type: ignore[attr-defined]
os.path.isdir = lambda path: not _hidden(path) and _isdir(path)

if sys.argv[:1] != ["-c"]:  # a child of `spawn` is told by its parent
    multiprocessing.set_start_method("spawn")
