"""What `--data` accepts, and which parts it has."""

from pathlib import Path

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.modality import FileKind
from sslkit.contract.source import OpenSpec
from sslkit.data.array_files import SUFFIXES, array_names, index_arrays
from sslkit.data.columnar import index_columnar, is_columnar, part_names
from sslkit.data.index import Index, index_files, index_folder, with_groups, with_labels, with_several_labels
from sslkit.data.shards import PREFIX, absolute, index_shards
from sslkit.data.tables import read_lines, read_table

# In any case: `Train/` beside `Test/`. The first test name that is there is the test part.
_TRAIN_NAMES, _TEST_NAMES = ("train", "training"), ("test", "testing", "val", "valid", "validation")


def find_parts(data: str, kind: FileKind) -> dict[str, str]:
    """Return the parts of the data: `{"train": ...}` and, where there is one, the test part under its own name.

    A folder has parts if it holds train/ or training/ beside test/, testing/, val/, valid/ or validation/ (whatever else it
    holds), or a training part alone; an .npz or .h5 has them if its arrays are called train_images, test_images and so on, a
    folder of parquet files if these are called train-00000.parquet and so on.
    Anything else is one part called train. Raises SslkitError for two folders of one meaning, such as train/ and Train/.
    """
    if data.startswith(PREFIX):
        return {"train": data}
    path = Path(data)
    try:
        exists = path.exists()
        inside = {entry.name for entry in path.iterdir() if entry.is_dir()} if path.is_dir() else set()
    except OSError as error:
        raise SslkitError(f"cannot read {data}: {error.strerror}", flag="data") from error
    if kind.shards and ("://" in data or (exists and path.suffix.lower() == ".tar")):
        raise SslkitError(f"{data} names shards", f"write wds:{data}", flag="data")
    if not exists:
        raise SslkitError(f"{data} does not exist", f"expected {kind.accepts}", flag="data")
    if path.is_dir() and kind.column and is_columnar(path, kind):
        train, test = _split_names(data, part_names(path))
        if train is not None:
            return {"train": f"{data}::{train}", **({test: f"{data}::{test}"} if test else {})}
    elif path.is_dir():
        train, test = _split_names(data, inside)
        if train is not None and (test is not None or len(inside) == 1):
            return {"train": str(path / train), **({test: str(path / test)} if test else {})}
    elif path.suffix.lower() in SUFFIXES[1:] and kind.arrays:
        end = f"_{kind.arrays[0]}"
        train, test = _split_names(data, {name.removesuffix(end) for name in array_names(path) if name.endswith(end)})
        if train is not None:
            return {"train": f"{data}::{train}", **({test: f"{data}::{test}"} if test else {})}
    return {"train": data}


def check_apart(data: str, out: Path) -> None:
    """Raise SslkitError for a run's folder inside the samples: its previews would become samples of the next run."""
    folder = Path(data)
    parts = [folder / name for name in _TRAIN_NAMES if (folder / name).is_dir()] or [folder]
    if any(part.is_dir() and out.resolve().is_relative_to(part.resolve()) for part in parts):
        raise SslkitError(
            f"{out} is inside the data folder {data}, where a run's pictures would become samples",
            "name a folder elsewhere",
            flag="out",
        )


def read_index(location: str, spec: OpenSpec, kind: FileKind) -> Index:
    """Index one part of the data, as `find_parts` named it; raises SslkitError for anything that can't be read."""
    if location.startswith(PREFIX) and kind.shards:
        return index_shards(location, spec.label, spec.group, spec.reindex, kind)
    data, _, part = location.partition("::")
    path = Path(data)
    suffix = path.suffix.lower()
    if kind.column and is_columnar(path, kind):
        return index_columnar(data, part, spec, kind)
    for flag, column in (("label", spec.label), ("group", spec.group)):
        if column is not None and suffix != ".csv" and (path.is_dir() or suffix in (".txt", *SUFFIXES)):
            folders = "labels of a folder are its subfolders; " if flag == "label" else ""
            hint = f"{folders}columns need a table; {flag_name(f'{flag}_pattern')} finds them in paths"
            raise SslkitError(f"{data} has no columns", hint, flag=flag)
    try:
        if path.is_dir():
            index = index_folder(data, path, spec.reindex, kind)
            _warn_of_split_names(index)
            return index
        if suffix == ".txt":
            return _index_list(path)
        if suffix == ".csv":
            return _index_csv(path, spec.label, spec.group)
        if suffix in SUFFIXES and kind.arrays:
            return index_arrays(path, part, kind)
    except PermissionError as error:
        raise SslkitError(f"no permission to read {error.filename or data}", flag="data") from error
    raise SslkitError(f"{data} is neither folder nor list", f"expected {kind.accepts}", flag="data")


def absolute_data(data: str) -> str:
    """Return what names the same data from any folder."""
    return absolute(data) if data.startswith(PREFIX) else str(Path(data).resolve())


def _split_names(data: str, names: set[str]) -> tuple[str | None, str | None]:
    """Return which names are those of the training and of the test part, None for a part that is not there."""
    train = [name for name in names if name.lower() in _TRAIN_NAMES]
    if len(train) > 1:
        raise SslkitError(f"{data} has {' and '.join(sorted(train))}", "which is the training part? rename one", flag="data")
    for meaning in _TEST_NAMES:
        test = [name for name in names if name.lower() == meaning]
        if len(test) > 1:
            raise SslkitError(f"{data} has {' and '.join(sorted(test))}", "which is the test part? rename one", flag="data")
        if test:
            return next(iter(train), None), test[0]
    return next(iter(train), None), None


def _warn_of_split_names(index: Index) -> None:
    """Say which classes are called like a part of the data."""
    names = [name for name in index.classes if name.lower() in (*_TRAIN_NAMES, *_TEST_NAMES)]
    if names:
        say_once(
            f"note: {index.source} has the class {' and '.join(names)}, a name of a part: "
            "for a training and a test part, name the folders train and test"
        )


def _index_list(path: Path) -> Index:
    lines = [line for _, line in read_lines(path)]
    if not lines:
        raise SslkitError(f"{path} lists no file", "expected one path a line", flag="data")
    return index_files(str(path), path.parent, lines)


def _index_csv(path: Path, label: str | None, group: str | None) -> Index:
    table = read_table(path)
    groups = None if group is None else table.column(group, "group")
    names = [] if label is None else table.column(label, "label", allow_empty=True)
    several = label is not None and any(";" in name for name in names)
    if label is not None and several:
        table.column(label, "label")  # a sample with none of several labels differs from one whose label is unknown
    index = index_files(str(path), path.parent, table.column("path"))
    if groups is not None:
        index = with_groups(index, groups)
    if label is None:
        return index
    if several:
        return with_several_labels(index, [[part for part in name.split(";") if part.strip()] for name in names])
    return with_labels(index, names)
