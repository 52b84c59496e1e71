"""Parquet files, and Hugging Face datasets saved on disk: tables whose cells are images or recordings.

Arrow files hold the bytes of each cell as they are, so that samples are read where they lie, like members of a tar. In parquet
files they are compressed: all cells are copied once to one file in the cache. From then on a table is like a folder: every
epoch is a full shuffle, and a run goes on at the step where it was stopped.
"""

import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from sslkit.console import say_once, show_progress
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.contract.modality import FileKind
from sslkit.contract.source import OpenSpec
from sslkit.data.cache import cache_error, cache_folder, make_room, read_arrays, store_arrays
from sslkit.data.index import (
    Index,
    index_files,
    join_names,
    split_names,
    stamp_file,
    stamp_of,
    with_groups,
    with_labels,
    with_several_labels,
)
from sslkit.extras import load_extra
from sslkit.files import write_atomically

_STATE = "state.json"  # of a dataset on disk
_LARGEST = 2**24  # bytes of that file
_ROWS = 256  # of a parquet file that are in memory at once


@dataclass(frozen=True)
class _Cells:
    """The bytes of some samples: those of row i lie at `spans[i]` of `data`."""

    data: Any  # a buffer of pyarrow
    spans: NDArray[np.int64]  # [n, 2]: offset in the buffer, and size; (-1, 0) where there are none
    names: list[str]


def is_columnar(path: Path, kind: FileKind) -> bool:
    """Return whether a path is a parquet file, a folder of them and of no samples, or a dataset saved on disk."""
    if path.suffix.lower() == ".parquet" or not path.is_dir():
        return path.suffix.lower() == ".parquet"
    if (path / _STATE).is_file():
        return True
    extensions, parquet = tuple(kind.extensions), False
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name.lower()
            if not name.startswith(".") and (entry.is_dir() or name.endswith(extensions)):
                return False
            parquet |= name.endswith(".parquet")
    return parquet


def part_names(folder: Path) -> set[str]:
    """Return what parquet files in a folder are called up to a hyphen or a dot: `train` of `train-00000-of-00002.parquet`."""
    return {_part_of(file) for file in _parquet_files(folder)}


def index_columnar(data: str, part: str, spec: OpenSpec, kind: FileKind) -> Index:
    """Index the rows of a table; of a folder of parquet files, those of one part, or of all for an empty one.

    Samples are in the column called like the modality, or in the only one that can hold them; a column `path` of text names
    files. Raises SslkitError for anything that can't be read.
    """
    files = _files(Path(data), part)
    with _reporting(data):
        schema = _schema(files[0])
        column = _sample_column(data, schema, kind)
        for file in files[1:]:
            if column not in (names := _schema(file).names):
                raise SslkitError(
                    f"{file} has no column {column}, unlike {files[0].name}: it has {', '.join(names)}", flag="data"
                )
        if _is_text(schema.field(column).type):
            paths = [str(path) for path in _read_column(files, column, data)]
            index = index_files(data, files[0].parent, paths)
        elif files[0].suffix.lower() == ".parquet":
            index = _unpack(data, files, column, spec)
        else:
            index = _locate(data, files, column)
        return _annotate(index, data, files, schema, spec)


def has_column(data: str, part: str, column: str) -> bool:
    """Return whether a part of the data has a column."""
    with _reporting(data):
        return all(column in _schema(file).names for file in _files(Path(data), part))


def read_texts(data: str, part: str, column: str) -> list[str]:
    """Return the texts in a column, such as captions; raises SslkitError if one is missing or empty."""
    files = _files(Path(data), part)
    with _reporting(data):
        texts = [str(text or "") for text in _read_column(files, column, data)]
    empty = next((row for row, text in enumerate(texts) if not text.strip()), None)
    if empty is not None:
        raise SslkitError(f"{column} is empty in row {empty} of {data}", flag="data")
    return texts


@contextmanager
def _reporting(data: str) -> Iterator[None]:
    """Turn what pyarrow raises for a damaged file into one line."""
    arrow = _arrow()
    try:
        yield
    except (arrow.ArrowException, OSError, ValueError, LookupError) as error:
        reason = str(error).partition("\n")[0]
        raise SslkitError(f"{data} cannot be read: {reason or type(error).__name__}", flag="data") from error


def _files(path: Path, part: str) -> list[Path]:
    """Return the files of a table in their order, not what links lead to: in a cache of Hugging Face these have no suffix."""
    if path.suffix.lower() == ".parquet" and not path.is_dir():
        return [path.absolute()]
    if not (path / _STATE).is_file():
        files = [file.absolute() for file in _parquet_files(path) if not part or _part_of(file) == part]
        _warn_of_missing(files)
        return files
    try:
        with open(path / _STATE, "rb") as stream:
            names = [entry["filename"] for entry in json.loads(stream.read(_LARGEST))["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise SslkitError(f"{path / _STATE} does not list the files of a dataset: {error}", flag="data") from error
    if not names or not all(isinstance(name, str) and os.path.basename(name) == name for name in names):
        raise SslkitError(f"{path / _STATE} should list files in its folder (it has {names!r:.80})", flag="data")
    return [(path / name).absolute() for name in names]


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.iterdir() if file.suffix.lower() == ".parquet" and not file.name.startswith("."))


def _warn_of_missing(files: list[Path]) -> None:
    """Say if some of files that count themselves, as `train-00000-of-00002.parquet` does, are not there."""
    counted = Counter(match.groups() for file in files if (match := re.fullmatch(r"(.*)-\d+-of-(\d+)\.parquet", file.name)))
    for (name, total), count in counted.items():
        if count < int(total):
            say_once(f"note: {count} of {int(total)} files {name}-*.parquet are there; the others are missing")


def _part_of(file: Path) -> str:
    return file.name.partition(".")[0].partition("-")[0]


def _schema(file: Path) -> Any:
    if file.suffix.lower() == ".parquet":
        return _parquet().read_schema(file)
    with _arrow().memory_map(str(file)) as source:
        return _arrow().ipc.open_stream(source).schema


def _batches(files: list[Path], columns: list[str]) -> Iterator[tuple[int, Any, Any]]:
    """Yield the number of a file, some of its rows, and, of an Arrow file, the buffer that is all of it."""
    for number, file in enumerate(files):
        with ExitStack() as stack:
            if file.suffix.lower() == ".parquet":
                table = stack.enter_context(closing(_parquet().ParquetFile(file)))
                for batch in table.iter_batches(_ROWS, columns=columns):
                    if len(batch):
                        yield number, batch, None
            else:
                whole = stack.enter_context(_arrow().memory_map(str(file))).read_buffer()
                for batch in _arrow().ipc.open_stream(whole):
                    if len(batch):
                        batch.validate(full=True)  # of an Arrow file, nothing else looks at the offsets
                        yield number, batch.select(columns), whole


def _read_column(files: list[Path], column: str, data: str, flag: str = "data") -> list[Any]:
    """Return the cells of a column, None where there is nothing; raises SslkitError if a file lacks it."""
    cells: list[Any] = []
    for file in files:
        names = _schema(file).names
        if names.count(column) != 1:
            raise SslkitError(f"{data} has no column {column}", did_you_mean(column, names), flag=flag)
    for _, batch, _ in _batches(files, [column]):
        cells += batch.column(0).to_pylist()
    return cells


def _sample_column(data: str, schema: Any, kind: FileKind) -> str:
    """Return the name of the column that holds samples."""
    if kind.column in schema.names and _holds_bytes(schema.field(kind.column).type):
        return kind.column
    if kind.column in schema.names:
        described = str(schema.field(kind.column).type)
        hint = "expected bytes, or a struct of bytes and path" + (
            "; call a column of paths path" if described == "string" else ""
        )
        raise SslkitError(f"the column {kind.column} of {data} holds {described}", hint, flag="data")
    columns = [field.name for field in schema if _holds_bytes(field.type)]
    if not columns and "path" in schema.names and _is_text(schema.field("path").type):
        return "path"
    if len(columns) != 1:
        listed = f"it has {', '.join(columns or schema.names)}"
        raise SslkitError(
            f"{data} has {'several columns' if columns else 'no column'} that may hold {kind.noun}",
            f"name the column {kind.column}; {listed}",
            flag="data",
        )
    return str(columns[0])


def _holds_bytes(kind: Any) -> bool:
    """Return whether a column has bytes, or, as Hugging Face writes it, a struct of `bytes` and `path`."""
    types = _arrow().types
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and (
            types.is_null(kind.field("bytes").type) or _holds_bytes(kind.field("bytes").type)
        )
    return bool(types.is_binary(kind) or types.is_large_binary(kind))


def _is_text(kind: Any) -> bool:
    return bool(_arrow().types.is_string(kind) or _arrow().types.is_large_string(kind))


def _cells(column: Any) -> _Cells:
    """Return where the bytes of a column lie in its buffer."""
    names = [""] * len(column)
    valid = np.asarray(column.is_valid())
    if _arrow().types.is_struct(column.type):
        if column.type.get_field_index("path") >= 0:
            names = [(name or "").replace("\0", "\ufffd") for name in column.field("path").to_pylist()]
        column = column.field("bytes")
    if _arrow().types.is_null(column.type):
        return _Cells(None, np.tile([-1, 0], (len(names), 1)), names)
    _, offsets, data = column.buffers()
    kind = np.int64 if _arrow().types.is_large_binary(column.type) else np.int32
    ends = np.frombuffer(offsets, dtype=kind)[column.offset : column.offset + len(column) + 1].astype(np.int64)
    spans = np.stack([ends[:-1], np.diff(ends)], axis=1)
    spans[~(valid & np.asarray(column.is_valid()))] = -1, 0
    return _Cells(data, spans, names)


def _locate(data: str, files: list[Path], column: str) -> Index:
    """Index the cells of Arrow files where they lie."""
    stamps = [stamp_of(os.stat(file)) for file in files]
    names: list[str] = []
    places: list[NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    for number, batch, whole in _batches(files, [column]):
        cells = _cells(batch.column(0))
        offsets, sizes = cells.spans.T
        start = 0 if cells.data is None else cells.data.address - whole.address
        if cells.data is not None and not 0 <= start <= start + cells.data.size <= whole.size:
            raise SslkitError(f"{data} is compressed", "save it again by `datasets`, or as parquet", flag="data")
        places.append(np.stack([np.where(offsets < 0, -1, number), np.maximum(offsets, 0) + start, sizes], axis=1))
        names += cells.names
    return _index(data, files, stamps, names, np.concatenate(places))


def _unpack(data: str, files: list[Path], column: str, spec: OpenSpec) -> Index:
    """Index the cells of parquet files, copied to a file in the cache unless they were."""
    known = [f"{file} {stamp_of(os.stat(file))}" for file in files]
    name = blake2b("\0".join([column, *known]).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    folder = cache_folder() / "tables" / name
    blob, listing = folder / "samples.bin", folder / "index.npz"
    needed, rows = _sizes(files, column)
    limit = int(spec.cache_limit * 1e9)
    if needed > limit:
        raise _too_large(data, needed, limit)
    try:
        make_room(needed, limit, folder)
        with FileLock(folder / "lock"):  # processes of one job all come here
            stored = _read_listing(listing, blob)
            if stored is None:
                listing.unlink(missing_ok=True)
                with write_atomically(blob) as stream:
                    names, places = _copy(data, files, column, stream, rows=rows, limit=limit)
                store_arrays(listing, names=join_names(names), places=places)
                stored = names, places
            folder.touch()  # its modification time says when it was last used
    except OSError as error:
        raise cache_error(error, flag="data") from error
    names, places = stored
    return _index(data, [blob], [stamp_of(os.stat(blob))], names, places, root=files[0].parent)


def _sizes(files: list[Path], column: str) -> tuple[int, int]:
    """Return the bytes of a column, unpacked, and the number of rows."""
    total, rows = 0, 0
    for file in files:
        with closing(_parquet().ParquetFile(file)) as table:
            metadata = table.metadata
            rows += metadata.num_rows
            for group in range(metadata.num_row_groups):
                for place in range(metadata.num_columns):
                    chunk = metadata.row_group(group).column(place)
                    if chunk.path_in_schema.partition(".")[0] == column:
                        total += chunk.total_uncompressed_size
    return total, rows


def _too_large(data: str, size: int, limit: int) -> SslkitError:
    problem = f"{data} takes {size / 1e9:.1f} GB unpacked, more than --cache-limit {limit / 1e9:g}"
    return SslkitError(problem, "raise the limit", flag="cache_limit")


def _copy(
    data: str, files: list[Path], column: str, stream: BinaryIO, *, rows: int, limit: int
) -> tuple[list[str], NDArray[np.int64]]:
    """Copy all cells of a column to a stream; return the names in them and `[N, 3]` of file 0, offset and size."""
    position = 0
    names: list[str] = []
    places: list[NDArray[np.int64]] = [np.empty((0, 3), dtype=np.int64)]
    with show_progress("unpacking parquet", rows) as progress:
        for _, batch, _ in _batches(files, [column]):
            cells = _cells(batch.column(0))
            offsets, sizes = cells.spans.T
            kept = offsets[offsets >= 0]
            first, last = (int(kept[0]), int((offsets + sizes).max())) if len(kept) else (0, 0)
            if position + last - first > limit:  # a value that is repeated counts once in what the file says of itself
                raise _too_large(data, position + last - first, limit)
            if last > first:
                stream.write(memoryview(cells.data)[first:last])
            at = np.where(offsets < 0, 0, position + offsets - first)
            places.append(np.stack([np.where(offsets < 0, -1, 0), at, sizes], axis=1))
            position += last - first
            names += cells.names
            progress.advance(len(sizes))
    return names, np.concatenate(places)


def _read_listing(listing: Path, blob: Path) -> tuple[list[str], NDArray[np.int64]] | None:
    """Return names and places of unpacked cells, None if something is missing or damaged: they are unpacked again."""
    arrays = read_arrays(listing, "names", "places")
    if arrays is None or not blob.is_file():
        return None
    names, places = split_names(arrays[0]) or [""], arrays[1]
    whole = len(names) == len(places) and blob.stat().st_size == (places[:, 1] + places[:, 2]).max(initial=0)
    return (names, places) if whole else None


def _index(
    data: str,
    files: list[Path],
    stamps: list[tuple[int, int, int]],
    names: list[str],
    places: NDArray[np.int64],
    root: Path | None = None,
) -> Index:
    """Return the index of cells at `places` `[N, 3]` of file, offset and size; one without bytes is the file it names."""
    if not len(places):
        raise SslkitError(f"{data} has no rows", flag="data")
    root = files[0].parent if root is None else root
    paths = [name or f"row {row}" for row, name in enumerate(names)]
    times_and_inodes = np.array([stamp[1:] for stamp in stamps])
    rows = np.concatenate([places[:, 2:], times_and_inodes[places[:, 0]]], axis=1)
    for row in np.flatnonzero(places[:, 0] < 0):
        if os.path.isabs(paths[row]) or ".." in Path(paths[row]).parts:
            raise SslkitError(f"row {row} of {data} names a file outside the table's folder: {paths[row]}", flag="data")
        rows[row] = stamp_file(root / paths[row])
    return Index(data, root, paths, rows, shards=tuple(map(str, files)), places=places[:, :2])


def _annotate(index: Index, data: str, files: list[Path], schema: Any, spec: OpenSpec) -> Index:
    """Return the index with labels and groups: those of the columns named, or labels of the only column of classes."""
    features = _features(schema)
    if spec.group is not None:
        groups = _texts(_read_column(files, spec.group, data, "group"), features.get(spec.group, []), data, "group")
        if not all(groups):
            raise SslkitError(f"{spec.group} is empty in row {groups.index('')} of {data}", flag="group")
        index = with_groups(index, groups)
    label = spec.label
    if label is None and spec.label_pattern is None:
        of_classes = [name for name, names in features.items() if names]
        label = of_classes[0] if len(of_classes) == 1 else None
    if label is None:
        return index
    cells = _read_column(files, label, data, "label")
    if any(isinstance(cell, list) for cell in cells):
        return with_several_labels(index, [_texts(cell or [], features.get(label, []), data, "label") for cell in cells])
    labels = _texts(cells, features.get(label, []), data, "label")
    if not any(map(str.strip, labels)):
        raise SslkitError(f"{label} is empty in all rows of {data}", flag="label")
    return with_labels(index, labels)


def _texts(cells: list[Any], names: list[str], data: str, flag: str) -> list[str]:
    """Return cells as texts: numbers of classes as their names, nothing for those that are unknown."""
    kinds = {type(cell) for cell in cells} - {str, int, bool, type(None)}
    if kinds:
        raise SslkitError(f"{data} has {kinds.pop().__name__} values there", "expected text or whole numbers", flag=flag)
    if not names:
        return ["" if cell is None else str(cell) for cell in cells]
    if any(isinstance(cell, int) and cell >= len(names) for cell in cells):
        raise SslkitError(f"{data} has classes that are not among its {len(names)} names", flag=flag)
    return ["" if cell is None or cell < 0 else names[cell] for cell in cells]


def _features(schema: Any) -> dict[str, list[str]]:
    """Return the class names of columns that have some, as Hugging Face describes them."""
    try:
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))["info"]["features"]
        columns = {name: feature.get("feature", feature) for name, feature in described.items()}  # of a list: its elements
        return {
            name: list(map(str, feature["names"])) for name, feature in columns.items() if feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # another program's, or none
        return {}


def _arrow() -> Any:
    arrow = load_extra("pyarrow", "hf", "reading parquet files and Hugging Face datasets")
    load_extra("pyarrow.ipc", "hf", "reading Hugging Face datasets")
    return arrow


def _parquet() -> Any:
    return load_extra("pyarrow.parquet", "hf", "reading parquet files")
