"""Running text as the source of pretraining: passages of so many tokens, kept as numbers in a memory-mapped array."""

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say_once, show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows, Source
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.cache import UNREADABLE, cache_error, cache_folder, make_room
from sslkit.data.index import index_folder
from sslkit.data.locations import find_parts
from sslkit.files import write_atomically
from sslkit.text.corpus import Corpus, Piece, text_files
from sslkit.text.options import TEXTS, TextOptions
from sslkit.text.tokenizer import END, Ids, Tokenizer, check_vocabulary

_CONTEXT = 128  # tokens of a passage


@dataclass(frozen=True)
class TokenizedText:
    """A text as token ids, `<end>` after each document; `tokens` of a cached text is the file that holds them."""

    tokenizer: Tokenizer
    tokens: NDArray[np.int32] | Path
    documents: NDArray[np.int64]  # where each document begins, in tokens
    sentences: NDArray[np.int64]  # where each sentence begins
    counts: NDArray[np.int64]  # of each id


class Passages(Source):
    """Passages of running text; a batch has `tokens`, int64 `[B, context]`.

    `previous`, int64 `[B]`, is the token before each passage; `starts_sentence`, bool `[B, context]`, tells where sentences
    begin; `document`, int64 `[B, context]`, counts the documents. In every epoch of training all passages are shifted by
    the same random number of tokens. `info.details` has `unit`, `tokenizer` (bytes for `Tokenizer.from_bytes`), `counts`
    (int64 `[ids]`), `documents` (their number) and, of words, `words` (a list, the most frequent first).
    """

    noun: ClassVar = TextOptions.noun
    _files_hash = ""

    def __init__(self, location: str, size: int, text: TokenizedText) -> None:
        self.location, self.resolved = location, {}
        self.text = text
        self._map: NDArray[np.int32] | None = None
        tokenizer = text.tokenizer
        details: dict[str, Any] = {
            "unit": tokenizer.unit,
            "tokenizer": tokenizer.to_bytes(),
            "counts": torch.from_numpy(text.counts),
            "documents": len(text.documents),
        }
        if tokenizer.unit == "word":
            details["words"] = tokenizer.pieces
        self.info = DataInfo(len(self.tokens) // size, size, tokenizer.size, "text", details)

    @classmethod
    def open(cls, spec: OpenSpec) -> Self:
        """Open `--data`, learning a tokenizer and turning text into numbers if that was not done before."""
        assert spec.data is not None
        for name in ("label", "label_pattern", "group", "group_pattern"):
            if getattr(spec, name) is not None:
                raise SslkitError(f"{spec.data} is text, which has no labels or groups", "leave it out", flag=name)
        options = spec.table(TextOptions)
        corpus = open_corpus(spec.data, options)
        check_vocabulary(options.unit, options.vocabulary)
        text = _tokenize(corpus, options) if spec.cache == "off" else _cached(corpus, spec)
        source = cls._of_size(spec.data, options, text)
        source._files_hash = text_fingerprint(spec.data, spec.reindex)
        if corpus.cut < corpus.size:
            share = f"{(corpus.size - corpus.cut) / corpus.size:.1%}"
            source.resolved["held_out"] = options.held_out, f"the last {share} of the text is not trained on"
        return source

    @classmethod
    def _of_size(cls, location: str, options: TextOptions, text: TokenizedText) -> Self:
        """Return passages of `--context` tokens."""
        length = int(text.counts.sum())
        if length < 2:
            raise SslkitError(f"{location} has {length} tokens", "expected a text", flag="data")
        size = min(_CONTEXT, length) if options.context == "auto" else options.context
        if size > length:
            raise SslkitError(f"{size} tokens in a passage, and {location} has {length:,}", "use fewer", flag="context")
        source = cls(location, size, text)
        if options.context == "auto":
            source.resolved["context"] = size, "tokens in a passage"
        return source

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
            stored = self.text.tokens
            self._map = np.load(stored, mmap_mode="r") if isinstance(stored, Path) else stored
        return self._map

    def fingerprint(self) -> str:
        """Return a hash of tokenizer and tokens."""
        digest = hashlib.sha256(self.text.tokenizer.to_bytes())
        digest.update(np.ascontiguousarray(self.tokens).data)
        return digest.hexdigest()[:16]

    def evaluation_fingerprint(self) -> str:
        """Return the hash of the files, which evaluations read."""
        return self._files_hash

    def sample_details(self) -> dict[str, Any]:
        """Return the unit of text."""
        return {"unit": self.text.tokenizer.unit}

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `tokens`, int32 `[n, size]`, `previous`, `starts_sentence` and `document`."""
        size, length = self.info.size, len(self.tokens)
        shift = 0 if draw is None else int(np.random.default_rng((draw.seed, draw.epoch)).integers(size))
        # A passage that reaches the end goes on at the start.
        places = (rows[:, None] * size + np.arange(-1, size) + shift) % length
        tokens = np.asarray(self.tokens[places])
        inside = places[:, 1:]
        return {
            "tokens": tokens[:, 1:],
            "previous": tokens[:, 0],
            "starts_sentence": _contains(self.text.sentences, inside),
            "document": np.searchsorted(self.text.documents, inside, side="right") - 1,
        }, {}

    def prepare(self, batch: Batch) -> Batch:
        """Return tokens as int64."""
        return {**batch, "tokens": batch["tokens"].long(), "previous": batch["previous"].long()}

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the tokens."""
        tokens: Tensor = batch["tokens"]
        return tokens

    def name(self, row: int) -> str:
        """Return where the passage begins."""
        return f"token {row * self.info.size}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_map": None}


def open_corpus(data: str, options: TextOptions) -> Corpus:
    """Return the documents of the training part of `--data`; without a test part the last ones are held out."""
    parts = find_parts(data, TEXTS)
    if len(parts) > 1:
        say_once(f"{data} has {' and '.join(parts)}: pretraining reads train only")
    return Corpus.open(text_files(Path(parts["train"])), options.documents, options.held_out if len(parts) == 1 else 0.0)


def text_fingerprint(data: str, reindex: bool) -> str:
    """Return a hash of the training part of `--data`: of the names and sizes in a folder, or of what a single file contains."""
    location = Path(find_parts(data, TEXTS)["train"])
    if location.is_dir():
        return index_folder(str(location), location, reindex, TEXTS).fingerprint()
    with open(location, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _contains(values: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which of the places are among ascending values."""
    if not len(values):
        return np.zeros(places.shape, dtype=np.bool_)
    contained: NDArray[np.bool_] = values[np.searchsorted(values, places).clip(max=len(values) - 1)] == places
    return contained


def _tokenize(corpus: Corpus, options: TextOptions) -> TokenizedText:
    """Learn a tokenizer from the training documents, and turn them into numbers."""
    vocabulary = None if options.vocabulary == "auto" else options.vocabulary

    def read() -> Iterator[str]:
        return (piece.text for piece in _shown_pieces(corpus, "learning a tokenizer"))

    tokenizer = Tokenizer.learn(options.unit, read, vocabulary)
    encoded = list(encode_pieces(_shown_pieces(corpus, "reading text"), tokenizer))
    tokens = np.concatenate([np.zeros(0, dtype=np.int32), *encoded])
    starts = np.cumsum([0, *map(len, encoded)])[:-1]
    ends = np.array([ids[0] == tokenizer.special(END) for ids in encoded], dtype=np.bool_)
    sentences = starts[~ends].astype(np.int64)
    begins = np.concatenate([[True], ends[:-1]])[: len(ends)]  # what follows an end, and the first of all
    counts = np.bincount(tokens, minlength=tokenizer.size).astype(np.int64)
    return TokenizedText(tokenizer, tokens, starts[begins].astype(np.int64), sentences, counts)


def encode_pieces(pieces: Iterable[Piece], tokenizer: Tokenizer) -> Iterator[Ids]:
    """Yield the token ids of each sentence, and the end token after each document; what has no tokens is left out."""
    end, new = np.array([tokenizer.special(END)], dtype=np.int32), True
    for piece in pieces:
        encoded = [ids for ids in tokenizer.encode(piece.sentences) if len(ids)]
        new = new and not encoded
        yield from encoded
        if piece.ends and not new:
            yield end
            new = True


def _shown_pieces(corpus: Corpus, title: str) -> Iterator[Piece]:
    """Yield the training text, with a progress bar."""
    with show_progress(title, corpus.cut) as progress:
        for piece in corpus.pieces("train"):
            yield piece
            progress.advance(len(piece.text.encode()))


def _cached(corpus: Corpus, spec: OpenSpec) -> TokenizedText:
    """Return the text as the cache has it, put there if it is not and fits."""
    options = spec.table(TextOptions)
    key = hashlib.sha256(f"{options.unit} {options.vocabulary} {corpus.documents} {corpus.cut}".encode())
    for file in corpus.files:
        status = file.stat()
        key.update(
            f"{file.resolve()}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}\0".encode(errors="surrogateescape")
        )
    folder = cache_folder() / "texts" / key.hexdigest()[:16]
    try:
        stored = _read_cached(folder)
        if stored is not None:
            folder.touch()  # its modification time says when it was last used
            return stored
        text = _tokenize(corpus, options)
        assert not isinstance(text.tokens, Path)
        needed, limit = text.tokens.nbytes, int(spec.cache_limit * 1e9)
        if needed > limit and spec.cache == "auto":
            return text
        if needed > limit:
            raise SslkitError(
                f"the text takes {needed / 1e9:.1f} GB, more than --cache-limit {spec.cache_limit:g}", flag="cache"
            )
        make_room(needed, limit, folder)
        with write_atomically(folder / "tokens.npy") as stream:
            np.save(stream, text.tokens)
        with write_atomically(folder / "text.npz") as stream:  # last: with it the text is complete
            spelling = np.frombuffer(text.tokenizer.to_bytes(), dtype=np.uint8)
            np.savez(stream, tokenizer=spelling, documents=text.documents, sentences=text.sentences, counts=text.counts)
        return TokenizedText(text.tokenizer, folder / "tokens.npy", text.documents, text.sentences, text.counts)
    except OSError as error:
        raise cache_error(error, "set SSLKIT_CACHE, or --cache off") from error


def _read_cached(folder: Path) -> TokenizedText | None:
    try:
        np.load(folder / "tokens.npy", mmap_mode="r", allow_pickle=False)
        with np.load(folder / "text.npz", allow_pickle=False) as saved:
            tokenizer = Tokenizer.from_bytes(saved["tokenizer"].tobytes())
            return TokenizedText(tokenizer, folder / "tokens.npy", saved["documents"], saved["sentences"], saved["counts"])
    except (*UNREADABLE, KeyError):  # not there, or damaged: the text is read again
        return None
