"""Texts as a source: files in class folders, or rows of a table, one or two texts each; evaluations read these."""

from hashlib import blake2b
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.decode import decoding
from sslkit.data.index import Index, with_groups, with_labels
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.tables import read_table
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.options import TEXTS, TextOptions
from sslkit.text.passages import Passages

_TABLES = (".csv", ".tsv")
_BETWEEN = b"\0"  # the two texts of a pair, which no text contains


class TextSource(IndexedSource):
    """Texts; a batch has `tokens`, int64 `[B, context]`: token ids of the encoder's tokenizer, padded.

    Of longer texts the end is left out, of pairs that of the longer one. Pretraining reads passages of running text instead.
    """

    kind: ClassVar = TEXTS
    noun: ClassVar = TEXTS.noun

    def __init__(self, index: Index, encoder: TokenEncoder, size: int) -> None:
        self.index, self.location, self.resolved = index, index.source, {}
        self.tokenizer, self.frame, self.size = encoder.tokenizer(), encoder.framing(), size
        self.info = DataInfo(len(index), size, encoder.in_channels, "text", {"unit": self.tokenizer.unit})

    @classmethod
    def open(cls, spec: OpenSpec) -> Passages:  # type: ignore[override]  # pretraining samples no single texts
        """Return passages of the running text in `--data`."""
        return Passages.open(spec)

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write sentences in which two families of words keep to themselves."""
        return Passages.example(folder, samples)

    @classmethod
    def list_samples(cls, location: str, spec: OpenSpec) -> Index:
        """Index class folders of .txt files, or a table with a column `text`, and perhaps `text2`."""
        path = Path(location)
        if path.suffix.lower() == ".txt":
            hint = "labeled texts are class folders of .txt files, or a .csv or .tsv with a column `text`"
            raise SslkitError(f"{location} is running text, without labels", hint, flag="data")
        if path.suffix.lower() not in _TABLES or not path.is_file():
            return super().list_samples(location, spec)
        table = read_table(path, needed="text")
        columns = [table.column(name, single_line=False) for name in ("text", "text2") if name in table.columns]
        cells = [_BETWEEN.join(text.encode() for text in row) for row in zip(*columns, strict=True)]
        torn = [table.lines[row] for row, cell in enumerate(cells) if cell.count(_BETWEEN) >= len(columns)]
        if torn:
            raise SslkitError(f"line {torn[0]} of {path} contains a NUL character", "remove it", flag="data")
        stamps = np.array([[len(cell), 0, 0] for cell in cells], dtype=np.int64)
        names = [f"{path.name}:{line}" for line in table.lines]
        index = Index(str(path), path.parent, names, stamps, cells=cells)
        if spec.group is not None:
            index = with_groups(index, table.column(spec.group, "group"))
        return index if spec.label is None else with_labels(index, table.column(spec.label, "label", allow_empty=True))

    @classmethod
    def for_finetuning(cls, index: Index, spec: OpenSpec, encoder: Encoder | None) -> Self:
        """Return texts as token ids of the encoder's tokenizer; raises SslkitError without an encoder that has one."""
        if encoder is None:
            raise SslkitError("texts need a tokenizer, which a checkpoint keeps", "name a checkpoint", flag="ckpt")
        size = spec.table(TextOptions).sample_size()
        assert size is not None  # the checkpoint's, at least
        return cls.for_evaluation(index, spec, encoder, size)

    @classmethod
    def for_evaluation(cls, index: Index, spec: OpenSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return texts as token ids of the encoder's tokenizer."""
        if not isinstance(encoder, TokenEncoder):
            raise SslkitError(f"{type(encoder).__name__} reads captions only", "use an encoder of text", flag=("ckpt", "part"))
        encoder.check_length(size)
        options, unit = spec.table(TextOptions), encoder.tokenizer().unit
        if "unit" in options.model_fields_set and options.unit != unit:
            raise SslkitError(f"the encoder splits text into {unit} (got {options.unit})", "leave it out", flag="unit")
        return cls(index, encoder, size)

    def key(self) -> str:
        """Return the data's own key, the length and the tokenizer."""
        tokenizer = blake2b(self.tokenizer.to_bytes(), digest_size=8).hexdigest()
        return f"{self.index.key()} {self.size} {tokenizer}"

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `tokens`, int32 `[n, size]`; a broken text is empty."""
        texts: list[list[str]] = []
        broken: dict[int, str] = {}
        for place, row in enumerate(rows):
            try:
                texts.append(read_texts(self.index, int(row)))
            except UnreadableSampleError as reason:
                broken[place] = str(reason)
                texts.append([""])
        tokens = np.full((len(rows), self.size), self.frame.padding, dtype=np.int32)
        for place, text in enumerate(texts):
            ids = self.frame(self.tokenizer.encode(text), self.size)
            tokens[place, : len(ids)] = ids
        return {"tokens": tokens}, broken

    def prepare(self, batch: Batch) -> Batch:
        """Return tokens as int64."""
        return {**batch, "tokens": batch["tokens"].long()}

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the tokens."""
        tokens: Tensor = batch["tokens"]
        return tokens


def read_texts(index: Index, row: int) -> list[str]:
    """Return the text of a row, or the two of a pair; raises UnreadableSampleError."""
    with decoding(index, row), index.open(row) as stream:
        return [text.decode("utf-8-sig") for text in stream.read().split(_BETWEEN)]
