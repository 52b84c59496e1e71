"""Options of images."""

from typing import Any, ClassVar, Literal

from pydantic import Field

from sslkit.contract.modality import FileKind
from sslkit.contract.options import Auto, DataOptions, Pixels

_EXTENSIONS = ".jpg .jpeg .jfif .png .bmp .gif .webp .tif .tiff .ppm .pgm .pbm .jp2 .ico .avif"


IMAGES = FileKind(
    "images",
    frozenset(_EXTENSIONS.split()),
    "a folder of images, a .txt list, a .csv with a `path` column, .npy/.npz arrays, or wds:SHARDS.tar",
    arrays=True,
    shards=True,
)


class ImageOptions(DataOptions):
    """Data options of images."""

    modality: ClassVar = "image"
    noun: ClassVar = IMAGES.noun
    unit: ClassVar = "px"
    value_range: ClassVar = "[0, 1]"
    accepts: ClassVar = IMAGES.accepts
    storage: ClassVar = ("layout",)
    record: ClassVar = "sslkit.image.modality:ImageModality"

    size: Pixels | Auto = Field(
        default="auto", description="Side of the square image an encoder sees, in pixels; auto: fits data or checkpoint."
    )
    canvas: Pixels | Auto = Field(
        default="auto", description="Side of the stored image that crops are cut from, in pixels; auto: 8/7 of --size."
    )

    layout: Literal["auto", "NCHW", "NHWC", "NHW"] = Field(
        default="auto", description="Axes of an array of images; auto: channels are the axis of 1 to 4."
    )

    def sample_size(self) -> int | None:
        """Return `--size`, None for auto."""
        return None if self.size == "auto" else self.size

    @classmethod
    def of_size(cls, size: int) -> dict[str, Any]:
        """Return `size`."""
        return {"size": size}
