"""Text as a source: words, turned into numbers once and kept in a memory-mapped array."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows, Source
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.cache import UNREADABLE, cache_error, cache_folder, make_room
from sslkit.files import write_atomically
from sslkit.text.options import TextOptions

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # letters and digits, with apostrophes inside; lower case


_PIECE = 2**22  # characters


_LENGTH = 128  # words in a sample


_Numbers = tuple[NDArray[np.int32] | Path, list[str], NDArray[np.int64]]  # the text, its words and their counts


class TextSource(Source):
    """Passages of text; a batch has `tokens`, int64 `[B, context]`: word ids, the most frequent word first.

    `info.details` has `words` (a list) and `counts` (int64 `[words]`).
    """

    noun: ClassVar = TextOptions.noun

    def __init__(self, location: str, size: int, tokens: NDArray[np.int32] | Path, words: list[str], counts: Tensor) -> None:
        self.location, self.resolved = location, {}
        self._tokens = tokens  # of a file only the path goes to worker processes
        self._map: NDArray[np.int32] | None = None
        self.info = DataInfo(len(self.tokens) // size, size, len(words), "text", {"words": words, "counts": counts})

    @classmethod
    def open(cls, spec: OpenSpec) -> Self:
        """Open `--data`, turning words into numbers if that was not done before."""
        assert spec.data is not None
        for name in ("label", "label_pattern", "group", "group_pattern"):
            if getattr(spec, name) is not None:
                raise SslkitError(f"{spec.data} is text, which has no labels or groups", "leave it out", flag=name)
        files = _files(Path(spec.data))
        stored, words, counts = _by_frequency(list(_numbered(files))) if spec.cache == "off" else _cached(files, spec)
        tokens = np.load(stored, mmap_mode="r") if isinstance(stored, Path) else stored
        if len(tokens) < 2:
            raise SslkitError(f"{spec.data} has {len(tokens)} words", "expected a text", flag="data")
        context = spec.table(TextOptions).context
        size = min(_LENGTH, len(tokens)) if context == "auto" else context
        if size > len(tokens):
            raise SslkitError(f"{size} words in a sample, and {spec.data} has {len(tokens)}", "use fewer", flag="context")
        text = cls(spec.data, size, stored, words, torch.from_numpy(counts))
        if context == "auto":
            text.resolved["context"] = size, "words in a sample"
        return text

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write sentences in which two families of words keep to themselves."""
        generator = torch.Generator().manual_seed(0)
        families = [[f"{letter}{i}" for i in range(20)] for letter in "ab"]
        lines = []
        for line in range(16 * samples):
            family = families[line % 2]
            lines.append(" ".join(family[int(place)] for place in torch.randint(20, (8,), generator=generator)))
        path = folder / "text.txt"
        path.write_text("\n".join(lines), encoding="utf-8")
        return str(path)

    @property
    def tokens(self) -> NDArray[np.int32]:
        """Return the whole text as numbers."""
        if self._map is None:
            self._map = np.load(self._tokens, mmap_mode="r") if isinstance(self._tokens, Path) else self._tokens
        return self._map

    def fingerprint(self) -> str:
        """Return a hash of the words in their order."""
        digest = hashlib.sha256("\n".join(self.info.details["words"]).encode())
        digest.update(np.ascontiguousarray(self.tokens).data)
        return digest.hexdigest()[:16]

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `tokens`, int32 `[n, size]`."""
        places = rows[:, None] * self.info.size + np.arange(self.info.size)
        return {"tokens": np.asarray(self.tokens[places])}, {}

    def prepare(self, batch: Batch) -> Batch:
        """Return `tokens` as int64."""
        return {**batch, "tokens": batch["tokens"].long()}

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the tokens."""
        tokens: Tensor = batch["tokens"]
        return tokens

    def name(self, row: int) -> str:
        """Return where the stretch begins."""
        return f"word {row * self.info.size}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


def _files(path: Path) -> list[Path]:
    try:
        if not path.exists():
            raise SslkitError(f"{path} does not exist", f"expected {TextOptions.accepts}", flag="data")
        files = sorted(file for file in path.rglob("*.txt") if file.is_file()) if path.is_dir() else [path]
    except OSError as error:
        raise SslkitError(f"cannot read {path}: {error.strerror}", flag="data") from error
    if not files:
        raise SslkitError(f"no .txt file in {path}", f"expected {TextOptions.accepts}", flag="data")
    return files


def _cached(files: list[Path], spec: OpenSpec) -> _Numbers:
    """Return the text as the cache has it, put there if it is not and fits."""
    key = hashlib.sha256()
    for file in files:
        status = file.stat()
        key.update(
            f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\0".encode(errors="surrogateescape")
        )
    folder = cache_folder() / "texts" / key.hexdigest()[:16]
    try:
        stored = _read_cached(folder)
        if stored is None:
            tokens, words, counts = _by_frequency(list(_numbered(files)))
            needed, limit = tokens.nbytes, int(spec.cache_limit * 1e9)
            if needed > limit and spec.cache == "auto":
                return tokens, words, counts
            if needed > limit:
                raise SslkitError(
                    f"the text takes {needed / 1e9:.1f} GB, more than --cache-limit {spec.cache_limit:g}", flag="cache"
                )
            make_room(needed, limit, folder)
            with write_atomically(folder / "tokens.npy") as stream:
                np.save(stream, tokens)
            with write_atomically(folder / "vocabulary.npz") as stream:  # last: with it the text is complete
                np.savez(stream, words=np.frombuffer("\n".join(words).encode(), dtype=np.uint8), counts=counts)
            return folder / "tokens.npy", words, counts
        folder.touch()  # its modification time says when it was last used
    except OSError as error:
        raise cache_error(error, "set SSLKIT_CACHE, or --cache off") from error
    return stored


def _read_cached(folder: Path) -> _Numbers | None:
    try:
        np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / "vocabulary.npz", allow_pickle=False) as saved:
            return folder / "tokens.npy", saved["words"].tobytes().decode().split("\n"), saved["counts"]
    except (*UNREADABLE, KeyError):  # not there, or damaged: the text is read again
        return None


def _by_frequency(
    pieces: list[tuple[NDArray[np.int32], dict[str, int]]],
) -> tuple[NDArray[np.int32], list[str], NDArray[np.int64]]:
    """Return all numbers, renamed so that 0 is the most frequent word, the words and their counts."""
    tokens = np.concatenate([numbers for numbers, _ in pieces]) if pieces else np.zeros(0, dtype=np.int32)
    words = list(pieces[-1][1]) if pieces else []
    counts = np.bincount(tokens, minlength=len(words))
    order = np.argsort(-counts, kind="stable")
    places = np.empty(len(words), dtype=np.int32)
    places[order] = np.arange(len(words), dtype=np.int32)
    return places[tokens], [words[place] for place in order], counts[order].astype(np.int64)


def _numbered(files: list[Path]) -> Iterator[tuple[NDArray[np.int32], dict[str, int]]]:
    """Number the words of all files by first occurrence, some megabytes at a time; the dict is one and grows."""
    known: dict[str, int] = {}
    with show_progress("reading words", sum(file.stat().st_size for file in files)) as progress:
        for file in files:
            try:
                for text in _pieces(file):
                    words = _WORD.findall(text.lower())
                    yield np.array([known.setdefault(word, len(known)) for word in words], dtype=np.int32), known
                    progress.advance(len(text.encode()))
            except UnicodeDecodeError as error:
                raise SslkitError(f"{file} is not UTF-8 text", flag="data") from error
            except OSError as error:
                raise SslkitError(f"cannot read {file}: {error.strerror}", flag="data") from error


def _pieces(file: Path) -> Iterator[str]:
    """Read a file in pieces that end between words, even if it is one long line."""
    rest = ""
    with open(file, encoding="utf-8-sig") as stream:
        while piece := stream.read(_PIECE):
            piece = rest + piece
            cut = max(piece.rfind(" "), piece.rfind("\n")) + 1
            rest = piece[cut:]
            yield piece[:cut]
    yield rest
