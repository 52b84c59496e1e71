"""Files of `torch.save` written by others: read as data, with nothing executed and no more memory than the file has bytes."""

import argparse
import pickle
import pickletools
import re
import struct
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from sslkit.contract.errors import SslkitError

# All that a file may name; with these, loading builds tensors and plain values.
_ALLOWED = re.compile(
    r"torch\.(\w+Storage|Size|device|(u?int|float|bfloat|complex)\d+|bool)"
    r"|torch\.storage\.(TypedStorage|UntypedStorage)"
    r"|torch\._utils\._rebuild_(tensor|tensor_v2|parameter)"
    r"|torch\.nn\.parameter\.Parameter"
    r"|collections\.(OrderedDict|Counter|defaultdict)"
    r"|argparse\.Namespace"
    r"|numpy\._?core\.multiarray\.scalar|numpy\.(dtype|dtypes\.\w+DType)|_codecs\.encode"
    r"|(builtins|__builtin__)\.(set|complex|dict|list|tuple|int|float|str|bool|bytes)"
)


_OLD_FORMAT_PICKLES = 5  # magic number, version, system, the object, names of storages


_DEEPEST = 16  # levels of dicts and lists


_NUMBERS = ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1")


_DAMAGED = (
    *(ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, MemoryError, OSError, OverflowError),
    *(RecursionError, RuntimeError, TypeError, ValueError, Warning, struct.error, pickle.UnpicklingError),
    *(zipfile.BadZipFile, NotImplementedError),
)


def is_torch_file(path: Path) -> bool:
    """Return whether a file begins as `torch.save` writes it: a zip archive, or, of old versions, a pickle."""
    try:
        with open(path, "rb") as file:
            start = file.read(9)
    except OSError:
        return False
    # The length with which a safetensors file begins may look like a pickle; its header follows.
    pickled = start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") and start[8:9] != b"{"
    return start[:4] == b"PK\x03\x04" or pickled


def read_torch_file(path: Path, flag: str) -> dict[str, Tensor]:
    """Return all tensors in a file, by the keys that lead to each: `state_dict.conv1.weight`.

    Raises SslkitError, naming the flag, for a file that is damaged, that names code, or whose tensors are larger than it.
    """
    try:
        archive = zipfile.is_zipfile(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # such as one about escapes in a name
            _check_names(path, archive, flag)
        with warnings.catch_warnings(), torch.serialization.safe_globals(_safe_globals()):
            warnings.simplefilter("error", UserWarning)
            if _claimed_bytes(_flatten(_load(path, "meta", mmap=False))) > path.stat().st_size:
                raise ValueError("its tensors are larger than the file")
            return _flatten(_load(path, "cpu", mmap=archive))
    except _DAMAGED as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise SslkitError(
            f"{path} cannot be read: {reason}", "expected tensors, as torch.save writes them", flag=flag
        ) from error


def _load(path: Path, device: str, mmap: bool) -> Any:
    return torch.load(path, map_location=device, weights_only=True, mmap=mmap)


def _claimed_bytes(tensors: dict[str, Tensor]) -> int:
    """Return the memory that tensors on the meta device, where nothing is allocated, would take; shared memory counts once."""
    storages: dict[int, int] = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.element_size() > storage.nbytes():
            raise ValueError(f"{name} repeats values of its memory")
        place = getattr(storage, "_checkpoint_offset", storage._cdata)  # torch makes one of each tensor of an archive
        storages[place] = max(storages.get(place, 0), storage.nbytes())
    return sum(storages.values())


def _safe_globals() -> list[Any]:
    """Return what torch allows only on request: what people keep beside their weights."""
    kinds = [type(np.dtype(kind)) for kind in _NUMBERS]
    scalars = [(_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    return [argparse.Namespace, (_dtype, "numpy.dtype"), *kinds, *scalars]


def _dtype(text: Any, *rest: Any) -> "np.dtype[Any]":
    """Return a type of numbers; raises ValueError for any other, such as a text of gigabytes."""
    if text not in _NUMBERS:
        raise ValueError(f"it has NumPy values of type {text!r}")
    kind: np.dtype[Any] = np.dtype(text)
    return kind


def _scalar(dtype: Any, content: Any = b"") -> Any:
    """Return one number of a type."""
    return np.frombuffer(content, dtype=dtype, count=1)[0]


def _check_names(path: Path, archive: bool, flag: str) -> None:
    """Raise SslkitError for the first name in a file that is none of the allowed ones, and ValueError for a packed archive."""
    with open(path, "rb") as file:
        if not archive:
            for _ in range(_OLD_FORMAT_PICKLES):
                _check_pickle(file, path, flag)
            return
        with zipfile.ZipFile(file) as members:
            if any(member.compress_type != zipfile.ZIP_STORED for member in members.infolist()):
                raise ValueError("a member is compressed, which torch.save does not do")
            pickles = [member for member in members.namelist() if member.endswith("data.pkl")]
            if len(pickles) != 1:
                raise ValueError("it is a zip archive of something else")
            with members.open(pickles[0]) as stream:
                _check_pickle(stream, path, flag)


def _check_pickle(stream: Any, path: Path, flag: str) -> None:
    for name in _names(stream):
        if not _ALLOWED.fullmatch(name):
            load = f'torch.load("{path.name}", weights_only=False)'
            raise SslkitError(
                f"{path} names {name}, which is code and not data",
                f'if you trust it, save its weights anew: torch.save({load}["state_dict"], "weights.pth")',
                flag=flag,
            )


def _names(stream: BinaryIO) -> Iterator[str]:
    """Yield what one pickle would import; raises ValueError for a kind of pickle that torch.save does not write."""
    for code, argument, _ in pickletools.genops(stream):
        if code.name in ("GLOBAL", "INST"):
            name = str(argument).replace(" ", ".")
            if not re.fullmatch(r"[\w.]+", name):
                raise ValueError(f"it is a pickle with the name {name!r}")
            yield name
        elif code.name == "STACK_GLOBAL" or code.name.startswith("EXT"):
            raise ValueError(f"it is a pickle with {code.name}, which torch.save does not write")


def _flatten(value: Any) -> dict[str, Tensor]:
    """Return the tensors in nested dicts and lists, by the keys that lead to each."""
    tensors: dict[str, Tensor] = {}
    level: list[tuple[str, Any]] = [("", value)]
    visited: set[int] = set()  # one that is listed in several places is entered once
    for _ in range(_DEEPEST):
        below: list[tuple[str, Any]] = []
        for name, inner in level:
            if isinstance(inner, Tensor):
                tensors[name or "tensor"] = inner.detach()
            elif id(inner) in visited:
                continue
            elif isinstance(inner, dict):
                visited.add(id(inner))
                below += [(f"{name}.{key}" if name else str(key), entry) for key, entry in inner.items()]
            elif isinstance(inner, list | tuple):
                visited.add(id(inner))
                below += [(f"{name}.{place}" if name else str(place), entry) for place, entry in enumerate(inner)]
        level = [(name, inner) for name, inner in below if isinstance(inner, Tensor | dict | list | tuple)]
    return tensors
