"""Options of text."""

from typing import Annotated, Any, ClassVar

from pydantic import Field

from sslkit.contract.options import Auto, DataOptions

Context = Annotated[int, Field(ge=8, le=4096)]


class TextOptions(DataOptions):
    """Data options of text."""

    modality: ClassVar = "text"
    noun: ClassVar = "passages"
    unit: ClassVar = "tokens"
    accepts: ClassVar = "a .txt file, or a folder of them"
    record: ClassVar = "sslkit.text.modality:TextModality"

    context: Context | Auto = Field(
        default="auto", description="Length of a sample in words, of a caption in tokens; auto: 128 words, 77 tokens."
    )

    def sample_size(self) -> int | None:
        """Return `--context`, None for auto."""
        return None if self.context == "auto" else self.context

    @classmethod
    def of_size(cls, size: int) -> dict[str, Any]:
        """Return `context`."""
        return {"context": size}
