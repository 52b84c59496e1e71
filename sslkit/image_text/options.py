"""Data options of images with captions."""

from typing import ClassVar

from sslkit.contract.options import DataOptions


class ImageTextOptions(DataOptions):
    """Images with captions have the options of both."""

    modality: ClassVar = "image_text"
    noun: ClassVar = "pairs"
    size_unit: ClassVar = "px"
    value_range: ClassVar = "[0, 1]"
    accepts: ClassVar = "a .csv with columns `path` and `caption`, or .parquet with `image` and `caption`"
    parts: ClassVar = ("image", "text")
    record: ClassVar = "sslkit.image_text.modality:ImageTextModality"
