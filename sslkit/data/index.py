"""The index: which samples there are, in which order, with which labels."""

import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import FileKind
from sslkit.data import remote
from sslkit.data.cache import cache_folder, read_arrays, store_arrays


class FileChangedError(Exception):
    """Report that a file is no longer what was indexed."""


def open_file(file: Path | str) -> BinaryIO:
    """Open a regular file to read its bytes; raises FileChangedError for anything else: opening a pipe would block."""
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise FileChangedError("is no file")
    return open(file, "rb")


@dataclass(frozen=True)
class Index:
    """List the samples of one part of the data: files below `root`, or rows of `array`."""

    source: str  # as the user wrote it, for messages
    root: Path
    paths: Sequence[str]  # relative to root; empty for an array
    stamps: NDArray[np.int64]  # [N, 3]: size in bytes, modification time in ns (-1: the file is missing), inode
    array: NDArray[Any] | None = None  # [N, ...]; of images [N, H, W, C], of point clouds [N, P, 3 + F]
    file_channels: int = 3  # of canvases of files
    range: str = "auto"  # `--range`, by which values of more than 8 bits are scaled
    labels: NDArray[np.int64] | None = None  # [N], places in `classes`, -1: unknown; or [N, classes] of 0 and 1
    classes: tuple[str, ...] = ()
    groups: NDArray[np.int64] | None = None  # [N], places in `group_names`: samples that no split may separate
    group_names: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()  # tar files that hold the samples
    places: NDArray[np.int64] | None = None  # [N, 2]: shard, and offset in it
    etags: tuple[str, ...] = ()  # of shards on a server
    pages: NDArray[np.int64] | None = None  # [N], of files that hold several samples
    cells: Sequence[bytes] | None = None  # samples that stand in a table themselves; `paths` names its lines
    beside: tuple["Index", ...] = ()  # further files of the same samples, row by row: what other cameras saw

    def __len__(self) -> int:
        return len(self.paths) if self.array is None else len(self.array)

    def name(self, row: int) -> str:
        """Return what to call a sample in a message or a list."""
        if self.array is not None:
            return f"row {row}"
        return self.paths[row] if self.pages is None else f"{self.paths[row]}[{self.pages[row]}]"

    def page(self, row: int) -> int:
        """Return which of the samples in its file a row is."""
        return 0 if self.pages is None else int(self.pages[row])

    @contextmanager
    def open(self, row: int) -> Iterator[BinaryIO]:
        """Open a sample's bytes; raises OSError as `open` does, and FileChangedError if they are no longer what was indexed."""
        if self.cells is not None:
            yield BytesIO(self.cells[row])
            return
        shard, offset = (-1, 0) if self.places is None else (int(value) for value in self.places[row])
        stamp = tuple(int(value) for value in self.stamps[row])
        if shard >= 0 and self.etags:
            yield BytesIO(remote.fetch(self._part(row)))
            return
        file = self.root / self.paths[row] if shard < 0 else self.shards[shard]
        with open_file(file) as stream:
            current = stamp_of(os.fstat(stream.fileno()))
            # Offsets hold for one state of a shard. A file may be copied anew during a run; of another size it is another.
            if (current[0] != stamp[0]) if shard < 0 else (current[1:] != stamp[1:]):
                raise FileChangedError("changed since it was indexed (start again to read it anew)")
            stream.seek(offset)
            yield stream if shard < 0 else BytesIO(stream.read(stamp[0]))

    def prefetch(self, rows: Iterable[int]) -> None:
        """Begin to fetch samples that will be opened soon, in this order, if they are on a server."""
        if self.etags:
            remote.prefetch(map(self._part, rows))

    def _part(self, row: int) -> remote.Part:
        assert self.places is not None
        shard, offset = (int(value) for value in self.places[row])
        return remote.Part(self.shards[shard], self.etags[shard], offset, int(self.stamps[row, 0]))

    @property
    def channels(self) -> int:
        """Return the channels of a canvas, or the values of a point: arrays keep theirs."""
        return self.file_channels if self.array is None else int(self.array.shape[-1])

    def fingerprint(self) -> str:
        """Return a hash of names and sizes (or of an array's values) that is the same wherever the data lies."""
        return self._hash(self.stamps[:, :1])

    def key(self) -> str:
        """Return a hash that names this data on this machine: its place and modification times too."""
        return self._hash(self.stamps, "\0".join([str(self.root.resolve()), *self.shards]))

    def subset(self, rows: NDArray[np.int64]) -> "Index":
        """Return the index of some rows, in the order given."""
        return replace(
            self,
            paths=[self.paths[row] for row in rows] if self.array is None else [],
            stamps=self.stamps[rows],
            places=None if self.places is None else self.places[rows],
            pages=None if self.pages is None else self.pages[rows],
            cells=None if self.cells is None else [self.cells[row] for row in rows],
            beside=tuple(other.subset(rows) for other in self.beside),
            array=None if self.array is None else self.array[rows],
            labels=None if self.labels is None else self.labels[rows],
            groups=None if self.groups is None else self.groups[rows],
        )

    def _hash(self, stamps: NDArray[np.int64], place: str = "") -> str:
        digest = hashlib.sha256(place.encode())
        if self.array is None:
            digest.update("\0".join(self.paths).encode(errors="surrogateescape"))
            digest.update(np.ascontiguousarray(stamps).tobytes())
            if self.pages is not None:
                digest.update(self.pages.tobytes())
            for cell in self.cells or ():
                digest.update(cell)
            for other in self.beside:
                digest.update(other._hash(other.stamps[:, : stamps.shape[1]]).encode())
        else:
            digest.update(str(self.array.shape).encode())
            digest.update(np.ascontiguousarray(self.array).data)
        return digest.hexdigest()[:16]


def with_labels(index: Index, names: Sequence[str]) -> Index:
    """Return the index with one label per sample; classes are the sorted names, without spaces around them.

    An empty name is an unknown label.
    """
    names = [name.strip() for name in names]
    classes = sorted(set(names) - {""})  # not np.unique, which sorts a million names
    places = {"": -1, **{name: place for place, name in enumerate(classes)}}
    labels = np.fromiter((places[name] for name in names), dtype=np.int64, count=len(names))
    return replace(index, labels=labels, classes=tuple(classes))


def with_groups(index: Index, names: Sequence[str]) -> Index:
    """Return the index with the group of each sample."""
    names = [name.strip() for name in names]
    group_names = sorted(set(names))  # not np.unique, as in `with_labels`
    places = {name: place for place, name in enumerate(group_names)}
    groups = np.fromiter((places[name] for name in names), dtype=np.int64, count=len(names))
    return replace(index, groups=groups, group_names=tuple(group_names))


def with_several_labels(index: Index, names: Sequence[Sequence[str]]) -> Index:
    """Return the index with any number of labels per sample, `[N, classes]` of 0 and 1; classes are the sorted names."""
    names = [[name.strip() for name in several] for several in names]
    classes = tuple(sorted({name for several in names for name in several}))
    places = {name: place for place, name in enumerate(classes)}
    labels = np.zeros((len(names), len(classes)), dtype=np.int64)
    for row, several in enumerate(names):
        labels[row, [places[name] for name in several]] = 1
    return replace(index, labels=labels, classes=classes)


def index_folder(source: str, root: Path, reindex: bool, kind: FileKind) -> Index:
    """Index the files of a kind below a folder; class subfolders give labels.

    The names are cached: they are used again if no folder's modification time changed, unless `reindex`. Sizes and times are
    read anew, because a file that is rewritten in place changes no folder.
    """
    listed = "\0".join([str(root.resolve()), *sorted(kind.extensions)])
    cached = cache_folder() / "index" / f"{hashlib.sha256(listed.encode()).hexdigest()[:16]}-{kind.noun}.npz"
    names = None if reindex else _read_cached(cached, root)
    if names is None:
        folders, paths, stamps = _scan(root, kind)
        _write_cached(cached, folders, paths)
    else:
        paths, stamps = names, _stamp_files(root, names)
    if not paths:
        raise SslkitError(f"no {kind.noun.removesuffix('s')} in {source}", _elsewhere(root, kind), flag="data")
    return with_folders_as_labels(Index(source, root, paths, stamps))


def _elsewhere(root: Path, kind: FileKind) -> str:
    """Return a hint for a folder without samples: what else lies in it, or what was looked for."""
    if kind.column and (table := next(root.rglob("*.parquet"), None)) is not None:
        return f"parquet files are in {table.parent}: name that"
    if kind.column and (state := next(root.rglob("dataset_info.json"), None)) is not None:
        return f"a Hugging Face dataset is in {state.parent}: name that"
    if kind.shards and (shard := next(root.rglob("*.tar"), None)) is not None:
        return f"shards are named wds:{shard.parent}/*.tar"
    return f"looked for {' '.join(sorted(kind.extensions))}, in subfolders too"


def with_folders_as_labels(index: Index) -> Index:
    """Return the index with the first folder of each path as its label, unknown for one in no folder."""
    folders = [folder if slash else "" for folder, slash, _ in (path.partition("/") for path in index.paths)]
    return with_labels(index, folders) if any(folders) else index


def index_files(source: str, root: Path, paths: Sequence[str]) -> Index:
    """Index files that were listed one by one; a missing one stays in the index and is quarantined when read."""
    paths = [path.replace(os.sep, "/") for path in paths]  # the same names, and fingerprint, on Windows
    stamps = _stamp_files(root, paths)
    if (stamps[:, 1] < 0).all():
        separators = "; write / between folders, not \\" if "\\" in paths[0] else ""
        hint = f"first: {root / paths[0]}{separators}"
        raise SslkitError(f"none of the {len(paths)} files listed in {source} exists", hint, flag="data")
    return Index(source, root, paths, stamps)


def _stamp_files(root: Path, paths: Sequence[str]) -> NDArray[np.int64]:
    """Return sizes, times and inodes `[N, 3]` of files, asked for by several threads: a network answers slowly."""
    chunks = [range(start, min(start + 1024, len(paths))) for start in range(0, len(paths), 1024)]
    stamps = np.empty((len(paths), 3), dtype=np.int64)
    with ThreadPoolExecutor(16) as pool, show_progress("looking at files", len(paths)) as progress:
        measured = pool.map(lambda rows: [stamp_file(os.path.join(root, paths[row])) for row in rows], chunks)
        for rows, part in zip(chunks, measured, strict=True):
            stamps[rows.start : rows.stop] = part
            progress.advance(len(rows))
    return stamps


def stamp_of(status: os.stat_result) -> tuple[int, int, int]:
    """Return size, modification time and inode of a file, by which a changed one is recognized."""
    return status.st_size, status.st_mtime_ns, status.st_ino & (2**63 - 1)  # some file systems use all 64 bits


def stamp_file(path: Path | str) -> tuple[int, int, int]:
    """Return the stamp of a file, with a time of -1 if it is missing, as what a link points to may be."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a name with a zero byte
        return 0, -1, 0
    return stamp_of(status)


def _scan(root: Path, kind: FileKind) -> tuple[list[tuple[str, int]], list[str], NDArray[np.int64]]:
    """List folders with their times and files with their stamps, all sorted, several folders at a time."""
    folders: list[tuple[str, int]] = []
    paths: list[str] = []
    stamp_arrays: list[NDArray[np.int64]] = []
    visited: set[tuple[int, int]] = set()  # folders already visited: links may form loops
    level = [""]
    suffixes = tuple(kind.extensions)
    with ThreadPoolExecutor() as pool, show_progress(f"indexing {kind.noun}", None) as progress:
        while level:
            below: list[str] = []
            for folder, status, inside, files, stamps in pool.map(lambda folder: _scan_one(root, folder, suffixes), level):
                if (status.st_dev, status.st_ino) in visited:
                    continue
                visited.add((status.st_dev, status.st_ino))
                folders.append((folder, status.st_mtime_ns))
                paths += files
                stamp_arrays.append(stamps)
                below += inside
                progress.advance(len(files))
            level = below
    order = sorted(range(len(paths)), key=paths.__getitem__)  # of folders that are sorted: little is left to do
    return folders, [paths[place] for place in order], np.concatenate(stamp_arrays)[order]


def _scan_one(
    root: Path, folder: str, suffixes: tuple[str, ...]
) -> tuple[str, os.stat_result, list[str], list[str], NDArray[np.int64]]:
    """Return a folder and its status, the folders inside, sorted, and its files, sorted, with stamps `[N, 3]`."""
    inside: list[str] = []
    files: list[tuple[str, int, int, int]] = []
    prefix = f"{folder}/" if folder else ""
    status = os.stat(root / folder)  # before listing: a change in between must look newer than the index
    try:
        with os.scandir(root / folder) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith("."):
                    continue
                if entry.is_dir():
                    inside.append(prefix + name)
                elif name.lower().endswith(suffixes):
                    files.append((prefix + name, *stamp_file(entry.path)))  # on Windows the entry itself knows no inode
    except PermissionError as error:
        raise SslkitError(f"no permission to read {root / folder}", flag="data") from error
    files.sort()
    # Not kept as tuples: a million of them keep the garbage collector busy.
    stamps = np.array([stamp for _, *stamp in files], dtype=np.int64).reshape(-1, 3)
    return folder, status, sorted(inside), [path for path, *_ in files], stamps


def _read_cached(file: Path, root: Path) -> list[str] | None:
    arrays = read_arrays(file, "folders", "times", "paths")
    if arrays is None:  # not there, or damaged: the folder is read again
        return None
    folders, times, paths = split_names(arrays[0]), arrays[1], split_names(arrays[2])
    for folder, time in zip(folders or [""], times, strict=True):
        if stamp_file(f"{root}/{folder}")[1] != time:
            return None
    return paths


def _write_cached(file: Path, folders: Iterable[tuple[str, int]], paths: list[str]) -> None:
    names, times = zip(*folders, strict=True)
    store_arrays(file, folders=join_names(names), times=np.array(times), paths=join_names(paths))


def join_names(names: Sequence[str]) -> NDArray[np.uint8]:
    """Return names, which hold no zero byte, as one array of bytes: a million of them are read in no time."""
    return np.frombuffer("\0".join(names).encode(errors="surrogateescape"), dtype=np.uint8)


def split_names(blob: NDArray[np.uint8]) -> list[str]:
    """Return the names in an array of bytes."""
    text = blob.tobytes().decode(errors="surrogateescape")
    return text.split("\0") if text else []
