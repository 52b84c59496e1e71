"""Options of text."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sslkit.contract.modality import FileKind
from sslkit.contract.options import Auto, DataOptions

TEXTS = FileKind(
    "texts",
    frozenset({".txt"}),
    "a .txt file or a folder of them; with labels, class folders of .txt files, or a .csv or .tsv with a `text` column",
)
RUNNING_TEXT = "a .txt file, or a folder of them"

Context = Annotated[int, Field(ge=8, le=4096)]
Vocabulary = Annotated[int, Field(ge=16, le=2**20)]
Unit = Literal["word", "wordpiece", "bpe", "byte"]
Documents = Literal["file", "blank-line"]


class TextOptions(DataOptions):
    """Data options of text."""

    modality: ClassVar = "text"
    noun: ClassVar = "passages"
    size_unit: ClassVar = "tokens"
    accepts: ClassVar = RUNNING_TEXT
    kept: ClassVar = ("documents", "held_out")
    record: ClassVar = "sslkit.text.modality:TextModality"

    unit: Unit = Field(
        default="word",
        description="What text is split into: lower-cased words, WordPiece, byte-level BPE (keeps all text) or bytes; "
        "`sslkit tasks TASK` names that of a task.",
    )
    vocabulary: Vocabulary | Auto = Field(
        default="auto", description="Words or pieces that the tokenizer learns at most; auto: all words, 4,096 pieces."
    )
    context: Context | Auto = Field(
        default="auto", description="Length of a sample in tokens; auto: 128, of a caption 77 at most."
    )
    documents: Documents = Field(default="file", description="What a document is: a file, or what stands between blank lines.")
    held_out: float = Field(
        default=0.05,
        ge=0,
        le=0.5,
        description="Share of the text, its last documents, kept from training for `perplexity`; unused beside a test part.",
    )

    def sample_size(self) -> int | None:
        """Return `--context`, None for auto."""
        return None if self.context == "auto" else self.context

    @classmethod
    def of_size(cls, size: int) -> dict[str, Any]:
        """Return `context`."""
        return {"context": size}
