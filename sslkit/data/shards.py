"""WebDataset shards, `--data 'wds:shards-{000..099}.tar'`: tar files whose members are read where they lie, also on a server.

The headers are read once and the places of all images kept in the cache. From then on shards are like a folder: every epoch is
a full shuffle, processes and workers take equal shares of every batch, and a run goes on at the step where it was stopped.
Nothing is ever unpacked, so that names in a tar are only names.
"""

import glob
import hashlib
import os
import re
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslkit.console import say_once, show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import FileKind
from sslkit.data import remote
from sslkit.data.cache import cache_folder, read_arrays, store_arrays
from sslkit.data.index import Index, join_names, split_names, stamp_of, with_groups, with_labels

PREFIX = "wds:"


_TEXT = 4096  # bytes of a label at most


_BLOCK, _RECORD = 512, 10240  # bytes of a header, and to a multiple of which a tar is filled up


_Member = tuple[str, int, int]  # name, offset and size of its bytes


def index_shards(data: str, label: str | None, group: str | None, reindex: bool, kind: FileKind) -> Index:
    """Index the images in shards; `label` and `group` are the extensions of the members that hold them, such as `cls`.

    Raises SslkitError for shards that are missing or compressed, that hold no image, no label, or not every group.
    """
    extensions = [extension for extension in (label, group) if extension is not None]
    files = expand(data)
    with ThreadPoolExecutor() as pool:
        states = list(pool.map(_state, files))
    known = [f"{file} {state.stamp}" for file, state in zip(files, states, strict=True)]
    identity = "\0".join([str(extensions), *known])
    cached = cache_folder() / "index" / f"{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:16]}.npz"
    members = None if reindex else _read(cached, len(extensions))
    if members is None:
        members = _scan(states, extensions, kind)
        if not members[0]:
            raise SslkitError(
                f"no image in {data}", f"looked for {' '.join(sorted(kind.extensions))} in {len(files)} shards", flag="data"
            )
        names, places, texts = members
        store_arrays(cached, names=join_names(names), places=places, texts=join_names(texts))
    names, places, texts = members
    texts_of = {extension: texts[number :: len(extensions)] for number, extension in enumerate(extensions)}
    if label is not None and not any(map(str.strip, texts_of[label])):
        raise SslkitError(f"no image in {data} has a .{label} beside it, such as {_key(names[0])}.{label}", flag="label")
    if group is not None and not all(map(str.strip, texts_of[group])):
        first = next(name for name, text in zip(names, texts_of[group], strict=True) if not text.strip())
        raise SslkitError(f"{first} has no .{group} beside it", "every sample needs a group", flag="group")
    times_and_inodes = np.array([state.stamp[1:] for state in states])
    index = Index(
        data,
        Path("/"),
        names,
        np.concatenate([places[:, 2:], times_and_inodes[places[:, 0]]], axis=1),
        shards=tuple(files),
        places=places[:, :2],
        etags=tuple(state.version.etag for state in states if state.version is not None),
    )
    if group is not None:
        index = with_groups(index, texts_of[group])
    return index if label is None else with_labels(index, texts_of[label])


@dataclass(frozen=True)
class _State:
    """A shard as it is now."""

    file: str
    stamp: tuple[int, int, int]  # size, and what tells it from others
    version: remote.Version | None  # on a server


def _state(file: str) -> _State:
    if remote.is_remote(file):
        version = remote.look_up(file)
        return _State(file, (version.size, *version.stamp()), version)
    return _State(file, stamp_of(os.stat(file)), None)


def expand(data: str) -> list[str]:
    """Return the files that a pattern with `{000..099}` or `*` names, sorted, as absolute paths, or addresses on a server."""
    pattern = data.removeprefix(PREFIX)
    if remote.is_remote(pattern) or pattern.startswith("pipe:"):
        remote.check_address(pattern)
        if glob.has_magic(pattern):
            raise SslkitError(f"a server lists no files for {pattern}", "number them: {000..099}", flag="data")
        return list(_ranges(pattern))
    files: list[str] = []
    for name in _ranges(pattern):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name] if os.path.isfile(name) else []
        if not matches:
            raise SslkitError(
                f"shard {name} does not exist", "such as wds:shards-{000..099}.tar or wds:shards/*.tar", flag="data"
            )
        files += [str(Path(match).resolve()) for match in matches]
    return files


def absolute(data: str) -> str:
    """Return a pattern that names the same shards from any folder."""
    pattern = data.removeprefix(PREFIX)
    return data if remote.is_remote(pattern) else PREFIX + os.path.abspath(pattern)


def _ranges(pattern: str) -> Iterator[str]:
    """Yield what `{first..last}` stands for, the first such range outermost; zeros in front are kept."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")


def _scan(states: list[_State], extensions: list[str], kind: FileKind) -> tuple[list[str], NDArray[np.int64], list[str]]:
    """Return names, `[N, 3]` of shard, offset and size, and the texts of each extension, one after the other, of all images."""
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    texts: list[str] = []
    with ThreadPoolExecutor() as pool, show_progress("reading the headers of shards", len(states)) as progress:
        for number, (images, text_of) in enumerate(pool.map(lambda state: _scan_one(state, extensions, kind), states)):
            for name, offset, size in images:
                key = _key(name)
                texts += [text_of.get(f"{key}.{extension}", "") for extension in extensions]
                names.append(f"{os.path.basename(states[number].file)}/{name}")
                places.append((number, offset, size))
            progress.advance()
    return names, np.array(places, dtype=np.int64).reshape(-1, 3), texts


@contextmanager
def _open_tar(state: _State) -> Iterator[tarfile.TarFile]:
    """Open a shard to read its headers in their order."""
    if state.version is None:
        with tarfile.open(state.file, "r:") as shard:
            yield shard
    else:
        with remote.stream_file(state.file, state.version) as stream, tarfile.open(fileobj=stream, mode="r|") as shard:
            yield shard


def _scan_one(state: _State, extensions: list[str], kind: FileKind) -> tuple[list[_Member], dict[str, str]]:
    images: list[_Member] = []
    texts: dict[str, str] = {}
    file, end = state.file, 0
    try:
        with _open_tar(state) as shard:
            for member in shard:
                if not member.isfile():
                    continue
                if state.version is not None and member.offset_data + member.size > state.version.size:
                    continue
                if member.name.lower().endswith(tuple(kind.extensions)):
                    images.append((member.name.replace("\0", "\ufffd"), member.offset_data, member.size))
                elif member.name in [f"{_key(member.name)}.{extension}" for extension in extensions]:
                    content = shard.extractfile(member)
                    assert content is not None
                    texts[member.name] = content.read(_TEXT).decode(errors="replace").replace("\0", "\ufffd").strip()
            end = shard.offset
        if not _ends(state, end):
            say_once(f"{file} is damaged after byte {end:,}: the {len(images):,} images before that are used")
    except tarfile.ReadError as error:
        if not images:
            raise SslkitError(
                f"{file} is no tar file that can be read: {error}", "it must not be compressed", flag="data"
            ) from error
        say_once(f"{file} is cut off: the {len(images):,} images before that are used")
    except OSError as error:
        raise SslkitError(f"cannot read {file}: {error.strerror}", flag="data") from error
    return images, texts


def _ends(state: _State, end: int) -> bool:
    """Return whether a shard ends where its last member does, but for zeros: `tarfile` also stops at a damaged header."""
    if state.version is not None:
        return state.version.size - end <= 2 * _RECORD  # no more than is filled up
    with open(state.file, "rb") as stream:
        stream.seek(end)
        return not stream.read(_BLOCK).strip(b"\0")


def _key(name: str) -> str:
    """Return what the members of one sample have in common: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _read(file: Path, texts_each: int) -> tuple[list[str], NDArray[np.int64], list[str]] | None:
    """Return what is known of shards, None if it is missing or damaged: they are read again."""
    arrays = read_arrays(file, "names", "places", "texts")
    if arrays is None:
        return None
    names, places, texts = split_names(arrays[0]), arrays[1], split_names(arrays[2])
    texts = texts or [""] * (texts_each * len(names))  # of one empty text nothing is left
    return (names, places, texts) if len(names) == len(places) and len(texts) == texts_each * len(names) else None
