"""Tokenizers: text to token ids and back. What one has learned is a small JSON that is kept in the checkpoint."""

import json
import re
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError
from sslkit.extras import load_extra
from sslkit.text.options import Unit

Ids = NDArray[np.int32]

# Special tokens follow the pieces, so that a byte is its own id, and a word its rank.
SPECIALS = ("<pad>", "<unknown>", "<cls>", "<sep>", "<mask>", "<end>")
PAD, UNKNOWN, CLS, SEP, MASK, END = range(len(SPECIALS))

VOCABULARY = 4096  # pieces that `auto` learns, of the units that have to learn
BYTES = 256
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # letters and digits, with apostrophes inside; lower case
_RARE = 2  # a piece is made of pairs that occur as often
_LONGEST = 100  # characters of a word: longer ones are unknown to WordPiece


class Tokenizer:
    """Split text into pieces: words, WordPiece (Devlin et al., 2019), byte-level BPE (Radford et al., 2019) or bytes.

    `pieces` are in the order of their ids; `merges` are the pairs that BPE joins, in order. Words and WordPiece are
    lower-cased and lose spaces; BPE and bytes lose nothing.
    """

    def __init__(self, unit: Unit, pieces: list[str], merges: list[tuple[str, str]] | None = None) -> None:
        self.unit, self.pieces, self.merges = unit, pieces, merges or []
        self.first_special = BYTES if unit == "byte" else len(pieces)

    @classmethod
    def learn(cls, unit: Unit, read: Callable[[], Iterable[str]], vocabulary: int | None = None) -> Self:
        """Learn the pieces of a text that `read` returns, at most `vocabulary` of them; None: every word, or 4,096 pieces."""
        if unit == "byte":
            return cls(unit, [])
        if unit == "word":
            return cls(unit, _frequent_words(read())[:vocabulary])
        library = _library()
        settings = {"vocab_size": vocabulary or VOCABULARY, "min_frequency": _RARE, "show_progress": False}
        if unit == "bpe":
            tokenizer = library.Tokenizer(library.models.BPE())
            _set_up(tokenizer, unit)
            trainer = library.trainers.BpeTrainer(initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(), **settings)
        else:
            tokenizer = library.Tokenizer(library.models.WordPiece(unk_token=SPECIALS[UNKNOWN]))
            _set_up(tokenizer, unit)
            # Named here, letters inside words get the same ids in every process, and ties are broken the same way.
            letters = set().union(*(tokenizer.normalizer.normalize_str(text) for text in read()))
            inside = [f"##{letter}" for letter in sorted(letters) if not letter.isspace()]
            trainer = library.trainers.WordPieceTrainer(special_tokens=inside, **settings)
        tokenizer.train_from_iterator(read(), trainer)
        model = json.loads(tokenizer.to_str())["model"]
        if unit == "bpe":
            return cls.of_merges([(first, second) for first, second in model["merges"]])
        return cls(unit, sorted(model["vocab"], key=model["vocab"].__getitem__))

    @classmethod
    def of_merges(cls, merges: list[tuple[str, str]]) -> Self:
        """Return byte-level BPE with these merges; raises ValueError for pairs that cannot be joined in this order."""
        return cls("bpe", join_merges(merges), merges)

    @classmethod
    def from_bytes(cls, content: bytes) -> Self:
        """Return the tokenizer that `to_bytes` wrote; raises ValueError for anything else."""
        values = json.loads(content)
        if not isinstance(values, dict) or values.keys() != {"unit", "pieces"} or values["unit"] not in get_args(Unit):
            raise ValueError("not a tokenizer")
        unit, pieces = values["unit"], values["pieces"]
        if not isinstance(pieces, list) or not all(isinstance(piece, str) and piece for piece in pieces):
            raise ValueError("its pieces are not strings")
        if unit == "bpe":
            pairs = [tuple(piece.split(" ")) for piece in pieces]
            if any(len(pair) != 2 for pair in pairs):
                raise ValueError("a merge that is no pair")
            return cls.of_merges([(pair[0], pair[1]) for pair in pairs])
        if len(set(pieces)) < len(pieces) or (unit == "byte" and pieces):
            raise ValueError("its pieces are not distinct")
        return cls(unit, pieces)

    @classmethod
    def from_checkpoint(cls, content: bytes, ids: int) -> Self:
        """Return the tokenizer that a checkpoint keeps for so many ids; raises SslkitError if it is damaged or another one."""
        try:
            tokenizer = cls.from_bytes(content)
        except (ValueError, RecursionError) as error:
            raise SslkitError("the tokenizer in the checkpoint is damaged", "the file was altered", flag="ckpt") from error
        if tokenizer.size != ids:
            problem = f"the tokenizer in the checkpoint has {tokenizer.size} ids, its encoder {ids}"
            raise SslkitError(problem, "the file was altered", flag="ckpt")
        return tokenizer

    def to_bytes(self) -> bytes:
        """Return all of it as JSON."""
        pieces = [" ".join(pair) for pair in self.merges] if self.unit == "bpe" else self.pieces
        return json.dumps({"unit": self.unit, "pieces": pieces}, ensure_ascii=False, separators=(",", ":")).encode()

    @property
    def size(self) -> int:
        """Return the number of ids, special tokens included."""
        return self.first_special + len(SPECIALS)

    @property
    def lossless(self) -> bool:
        """Return whether the text can be restored from its ids."""
        return self.unit in ("bpe", "byte")

    def byte_lengths(self) -> NDArray[np.int64]:
        """Return the bytes of text that each id of a lossless unit stands for; special tokens stand for none."""
        sizes = [1] * BYTES if self.unit == "byte" else [len(piece) for piece in self.pieces]  # a letter of BPE is a byte
        return np.array([*sizes, *(0 for _ in SPECIALS)], dtype=np.int64)

    def special(self, name: int) -> int:
        """Return the id of a special token, such as `PAD`."""
        return self.first_special + name

    def encode(self, texts: list[str]) -> list[Ids]:
        """Return the ids of each text, without special tokens but for unknown pieces."""
        if self.unit == "byte":
            return [np.frombuffer(text.encode(), dtype=np.uint8).astype(np.int32) for text in texts]
        if self.unit == "word":
            return [self._ids(_WORD.findall(text.lower())) for text in texts]
        return [np.array(encoding.ids, dtype=np.int32) for encoding in self._model.encode_batch(texts)]

    def encode_words(self, words: list[str]) -> tuple[Ids, NDArray[np.int64]]:
        """Return the ids of a sentence that is split into words, and the place of each word's first id.

        A word of which nothing is left becomes one unknown token.
        """
        encoded = self.encode([words[0], *(f" {word}" for word in words[1:])] if self.lossless else words)
        unknown = np.array([self.special(UNKNOWN)], dtype=np.int32)
        parts = [ids if len(ids) else unknown for ids in encoded]
        starts = np.cumsum([0, *map(len, parts)])[:-1]
        return np.concatenate(parts), starts.astype(np.int64)

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids; of units that lose spaces, with one between words. Special tokens show as their names."""
        return "".join(self._decode_run(run) for run in _runs(list(ids), self.first_special))

    def piece(self, token: int) -> str:
        """Return how one id is shown."""
        return self.decode([token])

    def _decode_run(self, ids: list[int]) -> str:
        if ids[0] >= self.first_special:
            return "".join(SPECIALS[token - self.first_special] for token in ids)
        if self.unit == "byte":
            return bytes(ids).decode(errors="replace")
        if self.unit == "word":
            return " ".join(self.pieces[token] for token in ids)
        decoded: str = self._model.decode(ids)
        return decoded

    def _ids(self, words: list[str]) -> Ids:
        known, unknown = self._places, self.special(UNKNOWN)
        return np.array([known.get(word, unknown) for word in words], dtype=np.int32)

    @cached_property
    def _places(self) -> dict[str, int]:
        return {piece: place for place, piece in enumerate(self.pieces)}

    @cached_property
    def _model(self) -> Any:
        """Return the library's tokenizer."""
        return self.to_library()

    def to_library(self) -> Any:
        """Return the same as a tokenizer of the library `tokenizers`, whatever the unit, special tokens included."""
        library, unknown = _library(), SPECIALS[UNKNOWN]
        pieces = _byte_letters() if self.unit == "byte" else self.pieces
        vocabulary = {piece: place for place, piece in enumerate([*pieces, *SPECIALS])}
        if self.lossless:
            model = library.models.BPE(vocabulary, self.merges)
        elif self.unit == "word":
            model = library.models.WordLevel(vocabulary, unk_token=unknown)
        else:
            model = library.models.WordPiece(vocabulary, unk_token=unknown, max_input_chars_per_word=_LONGEST)
        tokenizer = library.Tokenizer(model)
        _set_up(tokenizer, self.unit)
        return tokenizer

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_model"}


def check_vocabulary(unit: Unit, vocabulary: int | Literal["auto"]) -> None:
    """Raise SslkitError for a size of the vocabulary that the unit does not have."""
    if vocabulary == "auto":
        return
    if unit == "byte":
        raise SslkitError(f"there are {BYTES} bytes", "leave it out", flag=("unit", "vocabulary"))
    if unit == "bpe" and vocabulary < BYTES:
        raise SslkitError(f"byte-level BPE begins with {BYTES} bytes (got {vocabulary})", "use more", flag="vocabulary")


def join_merges(merges: list[tuple[str, str]]) -> list[str]:
    """Return the letters of byte-level BPE and what the pairs join; raises ValueError for pairs that are no such pieces."""
    pieces = sorted(_library().pre_tokenizers.ByteLevel.alphabet())
    known = set(pieces)
    for first, second in merges:
        if first not in known or second not in known or first + second in known:
            raise ValueError(f"{first!r} and {second!r} cannot be joined")
        known.add(first + second)
        pieces.append(first + second)
    return pieces


def _byte_letters() -> list[str]:
    """Return the letter that stands for each byte in byte-level BPE: itself if it can be printed (Radford et al., 2019)."""
    printed = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = [byte for byte in range(BYTES) if byte not in printed]
    return [chr(byte if byte in printed else BYTES + others.index(byte)) for byte in range(BYTES)]


def _runs(ids: list[int], first_special: int) -> list[list[int]]:
    """Return ids in runs of pieces and of special tokens."""
    runs: list[list[int]] = []
    for token in ids:
        if runs and (runs[-1][0] >= first_special) == (token >= first_special):
            runs[-1].append(token)
        else:
            runs.append([token])
    return runs


def _frequent_words(texts: Iterable[str]) -> list[str]:
    """Return the words of texts, most frequent first, those that are equally frequent in the order of the text."""
    counts: dict[str, int] = {}
    for text in texts:
        for word in _WORD.findall(text.lower()):
            counts[word] = counts.get(word, 0) + 1
    return sorted(counts, key=lambda word: -counts[word])


def _set_up(tokenizer: Any, unit: Unit) -> None:
    """Let a tokenizer of the library split and join text as the unit does."""
    library = _library()
    if unit in ("bpe", "byte"):
        tokenizer.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
    elif unit == "word":
        tokenizer.normalizer = library.normalizers.Lowercase()
        pattern = library.Regex(_WORD.pattern.replace(r"[^\W_]", r"[\p{L}\p{N}]"))  # what Python's `\w` is
        tokenizer.pre_tokenizer = library.pre_tokenizers.Split(pattern, "removed", invert=True)
    else:
        tokenizer.normalizer = library.normalizers.BertNormalizer(lowercase=True)
        tokenizer.pre_tokenizer = library.pre_tokenizers.BertPreTokenizer()
        tokenizer.decoder = library.decoders.WordPiece()


def _library() -> Any:
    for part in ("decoders", "models", "normalizers", "pre_tokenizers", "trainers"):
        load_extra(f"tokenizers.{part}", "text", "splitting text into pieces")
    return load_extra("tokenizers", "text", "splitting text into pieces")
