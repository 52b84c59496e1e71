"""Running text: files, the documents in them, which of these are held out, and the sentences of each.

Files are read some megabytes at a time. A document is a file or, by `--documents blank-line`, what stands between blank
lines; the last ones are held out, so that a language model can be tested on text that it has not seen.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Literal

from sslkit.contract.errors import SslkitError
from sslkit.text.options import Documents, TextOptions

Part = Literal["train", "held-out"]

_CHUNK = 2**22  # characters read at once
_BLANK_LINES = re.compile(r"\n[ \t\r]*(?:\n[ \t\r]*)+")
_LINE_END = re.compile(r"\n(?=[^\s])")  # followed by text: no run of blank lines is torn
_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=[ \t])|\n+")


@dataclass(frozen=True)
class Piece:
    """A piece of a document; `ends` tells whether the document ends with it."""

    text: str
    ends: bool

    @property
    def sentences(self) -> list[str]:
        """Return its sentences, which add up to the text: they end at a line's end, or at a stop before a space."""
        ends = [match.end() for match in _SENTENCE_END.finditer(self.text)]
        bounds = [0, *ends, *([len(self.text)] if not ends or ends[-1] < len(self.text) else [])]
        return [self.text[start:stop] for start, stop in pairwise(bounds)]


@dataclass(frozen=True)
class Corpus:
    """The documents of some files; those from byte `cut` on are held out. Offsets count the bytes of all files."""

    files: list[Path]
    documents: Documents
    size: int
    cut: int

    @classmethod
    def open(cls, files: list[Path], documents: Documents, held_out: float) -> "Corpus":
        """Return the documents of files, about a share of `held_out` of them set apart at the end.

        These are whole documents where one begins in that share of the text; else the end of the last document is held out.
        """
        try:
            sizes = [file.stat().st_size for file in files]
        except OSError as error:
            raise SslkitError(f"cannot read {error.filename}: {error.strerror}", flag="data") from error
        total = sum(sizes)
        corpus = cls(files, documents, total, total)
        if not held_out:
            return corpus
        target = int((1 - held_out) * total)
        starts = corpus._starts(sizes)
        return cls(files, documents, total, next((start for start in starts if target <= start < total), target))

    def pieces(self, part: Part) -> Iterator[Piece]:
        """Yield a part of the text in order; raises SslkitError for a file that is not UTF-8."""
        position = 0
        for file in self.files:
            for piece in self._pieces_of(file):
                size = len(piece.text.encode())
                inside = self.cut - position
                if 0 < inside < size:  # the end of the last document is held out
                    first = piece.text.encode()[:inside].decode(errors="ignore")
                    yield from [Piece(first, True)] if part == "train" else [Piece(piece.text[len(first) :], piece.ends)]
                elif (inside > 0) == (part == "train"):
                    yield piece
                position += size

    def content(self, part: Part) -> bytes:
        """Return a part of the text as it is."""
        return b"".join(piece.text.encode() for piece in self.pieces(part))

    def _starts(self, sizes: list[int]) -> list[int]:
        """Return where documents begin, in bytes from the start of the text."""
        if self.documents == "file":
            return [sum(sizes[:number]) for number in range(len(sizes))]
        starts, position, ended = [], 0, True
        for file in self.files:
            for piece in self._pieces_of(file):
                if ended:
                    starts.append(position)
                position, ended = position + len(piece.text.encode()), piece.ends
        return starts

    def _pieces_of(self, file: Path) -> Iterator[Piece]:
        """Yield the pieces of one file; its end is always that of a document."""
        try:
            last: Piece | None = None
            for chunk in _chunks(file):
                for piece in self._split(chunk):
                    if last is not None:
                        yield last
                    last = piece
            if last is not None:
                yield Piece(last.text, True)
        except UnicodeDecodeError as error:
            raise SslkitError(f"{file} is not UTF-8 text", flag="data") from error
        except OSError as error:
            raise SslkitError(f"cannot read {file}: {error.strerror}", flag="data") from error

    def _split(self, chunk: str) -> Iterator[Piece]:
        """Yield a chunk in pieces: whole, or at blank lines, which stay with the document before them."""
        start = 0
        if self.documents == "blank-line":
            for match in _BLANK_LINES.finditer(chunk):
                yield Piece(chunk[start : match.end()], True)
                start = match.end()
        if start < len(chunk):
            yield Piece(chunk[start:], False)


def _chunks(file: Path) -> Iterator[str]:
    """Read a file in chunks that end between lines, or between words if a line is longer than a chunk."""
    rest = ""
    with open(file, encoding="utf-8-sig", newline="") as stream:
        while chunk := stream.read(_CHUNK):
            chunk = rest + chunk
            ends = [match.end() for match in _LINE_END.finditer(chunk)]
            cut = ends[-1] if ends else chunk.rfind(" ") + 1
            rest = chunk[cut:]
            if cut:
                yield chunk[:cut]
    if rest:
        yield rest


def text_files(path: Path, flag: str = "data") -> list[Path]:
    """Return the .txt files of a folder in order, or the file itself; raises SslkitError if there are none."""
    try:
        if not path.exists():
            raise SslkitError(f"{path} does not exist", f"expected {TextOptions.accepts}", flag=flag)
        files = sorted(file for file in path.rglob("*.txt") if file.is_file()) if path.is_dir() else [path]
    except OSError as error:
        raise SslkitError(f"cannot read {path}: {error.strerror}", flag=flag) from error
    if not files:
        raise SslkitError(f"no .txt file in {path}", f"expected {TextOptions.accepts}", flag=flag)
    return files
