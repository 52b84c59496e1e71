"""Files of arrays, a row per sample: .npy, .npz and .h5; nothing in them is run, and nothing outside them is read."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import FileKind
from sslkit.data.cache import UNREADABLE
from sslkit.data.index import Index, with_labels
from sslkit.extras import load_extra

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5")
_HDF5 = (".h5", ".hdf5")


class HDF5Arrays(Mapping[str, NDArray[Any]]):
    """The numeric datasets at the top of an HDF5 file whose values lie in the file itself, read when asked for."""

    def __init__(self, file: Any) -> None:
        h5py = _h5py()
        self._datasets: dict[str, Any] = {}
        for name in file:
            if isinstance(file.get(name, getlink=True), h5py.HardLink) and isinstance(file[name], h5py.Dataset):
                dataset = file[name]
                if dataset.dtype.kind in "fiub" and not dataset.external and not dataset.is_virtual:
                    self._datasets[name] = dataset

    def __getitem__(self, name: str) -> NDArray[Any]:
        values: NDArray[Any] = self._datasets[name][()]
        return values

    def __iter__(self) -> Iterator[str]:
        return iter(self._datasets)

    def __len__(self) -> int:
        return len(self._datasets)


@contextmanager
def open_arrays(stream: BinaryIO, name: str) -> Iterator[Mapping[str, NDArray[Any]]]:
    """Open the arrays in a .npz or .h5 file; raises what the decoders raise."""
    if name.lower().endswith(_HDF5):
        with _h5py().File(stream, "r") as file:
            yield HDF5Arrays(file)
        return
    loaded = np.load(stream, allow_pickle=False)
    if not isinstance(loaded, NpzFile):
        raise ValueError("it holds a single array: name it .npy")
    with loaded:
        yield loaded


def find_array(arrays: Mapping[str, NDArray[Any]], names: tuple[str, ...], prefix: str = "") -> NDArray[Any] | None:
    """Return the array that has one of some names, or the only one, None if there is none."""
    called = [prefix + name for name in names if prefix + name in arrays]
    called = called or [name for name in arrays if len(arrays) == 1]
    return arrays[called[0]] if called else None


def array_names(path: Path) -> list[str]:
    """Return the names of the arrays in a file; raises SslkitError if it can't be read."""
    try:
        with open(path, "rb") as stream, open_arrays(stream, path.name) as arrays:
            return list(arrays)
    except UNREADABLE as error:
        raise SslkitError(f"{path} is not an {path.suffix} file of plain arrays: {_first_line(error)}", flag="data") from error


def index_arrays(path: Path, part: str, kind: FileKind) -> Index:
    """Index the rows of an array, with the labels beside it; raises SslkitError if there is none."""
    samples, labels = _load(path, f"{part}_" if part else "", kind.arrays)
    if not samples.ndim or not len(samples):
        raise SslkitError(f"{path} holds an array of shape {samples.shape}", "expected a row per sample", flag="data")
    index = Index(str(path), path, [], np.zeros((len(samples), 3), dtype=np.int64), array=samples)
    if labels is None:
        return index
    labels = labels.squeeze()
    if labels.shape != (len(samples),):
        raise SslkitError(f"{path} has {len(samples)} {kind.noun} and labels of shape {labels.shape}", flag="data")
    return with_labels(index, [str(label) for label in labels])


def _load(path: Path, prefix: str, names: tuple[str, ...]) -> tuple[NDArray[Any], NDArray[Any] | None]:
    try:
        if path.suffix.lower() == ".npy":
            return np.lib.format.open_memmap(path, mode="r"), None
        with open(path, "rb") as stream, open_arrays(stream, path.name) as arrays:
            samples = find_array(arrays, names, prefix)
            if samples is None:
                hint = f"arrays: {', '.join(arrays) or 'none'}"
                raise SslkitError(f"{path} has no array `{names[0]}`", hint, flag="data")
            labels = next((name for name in (f"{prefix}labels", f"{prefix}label") if name in arrays), None)
            return samples, None if labels is None else arrays[labels]
    except UNREADABLE as error:
        raise SslkitError(f"{path} is not a file of plain arrays: {_first_line(error)}", flag="data") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]  # numpy goes on with advice for programmers


def _h5py() -> Any:
    return load_extra("h5py", "hdf5", "reading .h5")
