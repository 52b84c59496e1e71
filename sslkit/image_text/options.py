"""Data options of images with captions."""

from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import AfterValidator, Field

from sslkit.contract.options import DataOptions

_PART = "text"  # of a checkpoint of pairs: the tower that can start from another file


def _check_part(value: str) -> str:
    part, _, file = value.partition("=")
    if part != _PART or not file:
        raise ValueError(f"{value} is not {_PART}=FILE: of pairs, only the text tower is started by it")
    return f"{_PART}={Path(file).absolute()}"


class ImageTextOptions(DataOptions):
    """Images with captions have the options of both."""

    modality: ClassVar = "image_text"
    noun: ClassVar = "pairs"
    size_unit: ClassVar = "px"
    value_range: ClassVar = "[0, 1]"
    accepts: ClassVar = "a .csv with columns `path` and `caption`, or .parquet with `image` and `caption`"
    parts: ClassVar = ("image", "text")
    paths: ClassVar = ("init_part",)
    record: ClassVar = "sslkit.image_text.modality:ImageTextModality"

    init_part: Annotated[str, AfterValidator(_check_part)] | None = Field(
        default=None,
        description="text=FILE: start the text tower from a checkpoint of text, whose tokenizer splits the captions.",
    )

    def text_checkpoint(self) -> str | None:
        """Return the file that the text tower starts from, None for random weights."""
        return None if self.init_part is None else self.init_part.removeprefix(f"{_PART}=")
