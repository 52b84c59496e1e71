"""Options of images."""

import math
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from sslkit.contract.modality import FileKind
from sslkit.contract.options import Auto, DataOptions, Pixels

_EXTENSIONS = ".jpg .jpeg .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .ico .avif .dcm .dicom .nii .nii.gz"


IMAGES = FileKind(
    "images",
    frozenset(_EXTENSIONS.split()),
    "a folder of images, a .txt list, a .csv with a `path` column, .npy/.npz/.h5 arrays, .parquet, or wds:SHARDS.tar",
    arrays=("images",),
    shards=True,
    column="image",
)


_NUMBER = r"-?\d+(\.\d*)?(e[-+]?\d+)?"


class ImageOptions(DataOptions):
    """Data options of images."""

    modality: ClassVar = "image"
    noun: ClassVar = IMAGES.noun
    size_unit: ClassVar = "px"
    value_range: ClassVar = "[0, 1]"
    accepts: ClassVar = IMAGES.accepts
    storage: ClassVar = ("layout", "targets")
    paths: ClassVar = ("targets",)
    kept: ClassVar = ("channels", "range")
    rules: ClassVar = {"range": ("dtype", "data")}
    record: ClassVar = "sslkit.image.modality:ImageModality"

    size: Pixels | Auto = Field(
        default="auto", description="Side of the square image an encoder sees, in pixels; auto: fits data or checkpoint."
    )
    canvas: Pixels | Auto = Field(
        default="auto",
        description="Side of the stored square that crops are cut from, in pixels; auto: 1.32 of --size.",
    )

    layout: Literal["auto", "NCHW", "NHWC", "NHW"] = Field(
        default="auto", description="Axes of an array of images; auto: channels are the axis of 1 to 4."
    )

    channels: Annotated[int, Field(ge=1, le=64)] | Auto = Field(
        default="auto", description="Channels of image files: 1 keeps gray images gray; auto: 3, or what TIFF files have."
    )
    range: Annotated[str, Field(pattern=rf"^(auto|dtype|data|{_NUMBER},{_NUMBER})$")] = Field(
        default="auto",
        description="Values of pixels of more than 8 bits that become black and white: LOW,HIGH, dtype, data (percentiles).",
    )

    targets: str | None = Field(
        default=None,
        description="Masks or boxes: path from an image, ../masks/{stem}.png, ../boxes/{stem}.xml, or a COCO .json.",
    )

    @field_validator("targets")
    @classmethod
    def _make_absolute(cls, value: str | None) -> str | None:
        # A pattern begins at each image; a file has to be known from other folders, too.
        return str(Path(value).resolve()) if value is not None and value.lower().endswith(".json") else value

    @field_validator("range")
    @classmethod
    def _check_order(cls, value: str) -> str:
        if "," in value:
            low, high = map(float, value.split(","))
            if not (math.isfinite(low) and low < high < math.inf):
                raise ValueError(f"{value}: LOW should be below HIGH")
        return value

    def sample_size(self) -> int | None:
        """Return `--size`, None for auto."""
        return None if self.size == "auto" else self.size

    @classmethod
    def of_size(cls, size: int) -> dict[str, Any]:
        """Return `size`."""
        return {"size": size}
