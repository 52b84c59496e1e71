"""WebDataset shards, `--data 'wds:shards-{000..099}.tar'`: tar files whose members are read where they lie.

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
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sslkit.console import say, show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import FileKind
from sslkit.data.cache import UNREADABLE, cache_folder, claim_cache
from sslkit.data.index import Index, join_names, split_names, stamp_of, with_groups, with_labels
from sslkit.files import write_atomically

PREFIX = "wds:"


_TEXT = 4096  # bytes of a label at most


_Member = tuple[str, int, int]  # name, offset and size of its bytes


def index_shards(data: str, label: str | None, group: str | None, reindex: bool, kind: FileKind) -> Index:
    """Index the images in shards; `label` and `group` are the extensions of the members that hold them, such as `cls`.

    Raises SslkitError for shards that are missing or compressed, that hold no image, no label, or not every group.
    """
    extensions = [extension for extension in (label, group) if extension is not None]
    files = expand(data)
    stamps = [os.stat(file) for file in files]
    known = [f"{file} {stamp.st_size} {stamp.st_mtime_ns} {stamp.st_ino}" for file, stamp in zip(files, stamps, strict=True)]
    identity = "\0".join([str(extensions), *known])
    cached = cache_folder() / "index" / f"{hashlib.sha256(identity.encode(errors='surrogateescape')).hexdigest()[:16]}.npz"
    members = None if reindex else _read(cached)
    if members is None:
        members = _scan(files, extensions, kind)
        if not members[0]:
            raise SslkitError(
                f"no image in {data}", f"looked for {' '.join(sorted(kind.extensions))} in {len(files)} shards", flag="data"
            )
        _write(cached, *members)
    names, places, texts = members
    texts_of = {extension: texts[number :: len(extensions)] for number, extension in enumerate(extensions)}
    if label is not None and not any(map(str.strip, texts_of[label])):
        raise SslkitError(f"no image in {data} has a .{label} beside it, such as {_key(names[0])}.{label}", flag="label")
    if group is not None and not all(map(str.strip, texts_of[group])):
        first = next(name for name, text in zip(names, texts_of[group], strict=True) if not text.strip())
        raise SslkitError(f"{first} has no .{group} beside it", "every sample needs a group", flag="group")
    times_and_inodes = np.array([stamp_of(stamp)[1:] for stamp in stamps])
    index = Index(
        data,
        Path("/"),
        names,
        np.concatenate([places[:, 2:], times_and_inodes[places[:, 0]]], axis=1),
        shards=tuple(str(file) for file in files),
        places=places[:, :2],
    )
    if group is not None:
        index = with_groups(index, texts_of[group])
    return index if label is None else with_labels(index, texts_of[label])


def expand(data: str) -> list[Path]:
    """Return the files that a pattern with `{000..099}` or `*` names, sorted, as absolute paths."""
    pattern = data.removeprefix(PREFIX)
    if "://" in pattern or pattern.startswith("pipe:"):
        raise SslkitError(f"shards are read from disks, not from {pattern}", "copy them, or mount the bucket", flag="data")
    files: list[Path] = []
    for name in _ranges(pattern):
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name] if os.path.isfile(name) else []
        if not matches:
            raise SslkitError(
                f"shard {name} does not exist", "such as wds:shards-{000..099}.tar or wds:shards/*.tar", flag="data"
            )
        files += [Path(match).resolve() for match in matches]
    return files


def absolute(data: str) -> str:
    """Return a pattern that names the same shards from any folder."""
    return PREFIX + os.path.abspath(data.removeprefix(PREFIX))


def _ranges(pattern: str) -> Iterator[str]:
    """Yield what `{first..last}` stands for, the first such range outermost; zeros in front are kept."""
    match = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if match is None:
        yield pattern
        return
    first, last = match.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(f"{pattern[: match.start()]}{number:0{len(first)}d}{pattern[match.end() :]}")


def _scan(files: list[Path], extensions: list[str], kind: FileKind) -> tuple[list[str], NDArray[np.int64], list[str]]:
    """Return names, `[N, 3]` of shard, offset and size, and the texts of each extension, one after the other, of all images."""
    names: list[str] = []
    places: list[tuple[int, int, int]] = []
    texts: list[str] = []
    with ThreadPoolExecutor() as pool, show_progress("reading the headers of shards", len(files)) as progress:
        for number, (images, text_of) in enumerate(pool.map(lambda file: _scan_one(file, extensions, kind), files)):
            for name, offset, size in images:
                key = _key(name)
                texts += [text_of.get(f"{key}.{extension}", "") for extension in extensions]
                names.append(f"{files[number].name}/{name}")
                places.append((number, offset, size))
            progress.advance()
    return names, np.array(places, dtype=np.int64).reshape(-1, 3), texts


def _scan_one(file: Path, extensions: list[str], kind: FileKind) -> tuple[list[_Member], dict[str, str]]:
    images: list[_Member] = []
    texts: dict[str, str] = {}
    try:
        with tarfile.open(file, "r:") as shard:
            for member in shard:
                if not member.isfile():
                    continue
                if os.path.splitext(member.name)[1].lower() in kind.extensions:
                    images.append((member.name, member.offset_data, member.size))
                elif member.name in [f"{_key(member.name)}.{extension}" for extension in extensions]:
                    content = shard.extractfile(member)
                    assert content is not None
                    texts[member.name] = content.read(_TEXT).decode(errors="replace").strip()
    except tarfile.ReadError as error:
        if not images:
            raise SslkitError(
                f"{file} is no tar file that can be read: {error}", "it must not be compressed", flag="data"
            ) from error
        say(f"{file} is cut off: the {len(images):,} images before that are used")
    except OSError as error:
        raise SslkitError(f"cannot read {file}: {error.strerror}", flag="data") from error
    return images, texts


def _key(name: str) -> str:
    """Return what the members of one sample have in common: the name up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}"


def _read(file: Path) -> tuple[list[str], NDArray[np.int64], list[str]] | None:
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as saved:
            return split_names(saved["names"]), saved["places"], split_names(saved["texts"])
    except (*UNREADABLE, KeyError):  # not there, or damaged: the shards are read again
        return None


def _write(file: Path, names: list[str], places: NDArray[np.int64], texts: list[str]) -> None:
    try:
        claim_cache()
        with write_atomically(file) as stream:
            np.savez(stream, names=join_names(names), places=places, texts=join_names(texts))
    except OSError as error:
        raise SslkitError(f"cannot write to the cache {cache_folder()}: {error.strerror}", "set SSLKIT_CACHE") from error
