"""Small pictures of samples: one by one, and many in one sheet that takes little room in a page."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

_SHARP = 32  # pixels up to which a picture is kept as it is, each pixel to be seen
_COLUMNS = 25


@dataclass(frozen=True)
class TileSheet:
    """Square pictures in rows of `columns`, as one PNG or JPEG."""

    picture: bytes
    columns: int
    sharp: bool  # whether single pixels are to be seen


def encode(image: Image.Image, side: int) -> bytes:
    """Return a picture, no larger than `side`, as PNG if it is so small that each pixel counts, else as JPEG."""
    if max(image.size) > side:
        image = image.resize((side, side), Image.Resampling.LANCZOS)
    return _bytes(image, max(image.size) <= _SHARP)


def tile_sheet(pictures: Sequence[Image.Image | None], side: int) -> TileSheet:
    """Return pictures, no larger than `side`, in one sheet; gray where there is none."""
    side = min(side, max(image.width for image in pictures if image is not None))
    sharp = side <= _SHARP
    sheet = Image.new("RGB", (_COLUMNS * side, -(-len(pictures) // _COLUMNS) * side), (128, 128, 128))
    resampling = Image.Resampling.NEAREST if sharp else Image.Resampling.LANCZOS
    for place, image in enumerate(pictures):
        if image is not None:
            sheet.paste(
                image.convert("RGB").resize((side, side), resampling), (place % _COLUMNS * side, place // _COLUMNS * side)
            )
    return TileSheet(_bytes(sheet, sharp), _COLUMNS, sharp)


def _bytes(image: Image.Image, exact: bool) -> bytes:
    with io.BytesIO() as stream:
        if exact:
            image.save(stream, format="PNG")
        else:
            image.convert("RGB").save(stream, format="JPEG", quality=82)
        return stream.getvalue()
