"""Decode one image to a square uint8 canvas, or raise with the reason."""

from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin

from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.decode import decoding, inspect_samples, silence_decoders
from sslkit.data.index import Index

Canvas = NDArray[np.uint8]  # [canvas, canvas, C]
Scale = Callable[[NDArray[Any]], NDArray[np.uint8]]  # of values of more than 8 bits


_MOST_PIXELS = 90_000_000  # to be decoded at once; a worker that holds more may end them all


def read_canvas(index: Index, row: int, canvas: int, scale: Scale | None = None) -> Canvas:
    """Return sample `row` as `[canvas, canvas, C]`: the short side shrunk to the canvas, the middle cut out.

    Orientation (EXIF) is applied; only the first frame is read; transparency is put on white; more than 8 bits are scaled,
    without a `scale` from 16; palette and CMYK become RGB, and gray too if files have 3 channels. Raises
    UnreadableSampleError with a reason.
    """
    if index.array is not None:
        return _fit_array(index.array[row], canvas, scale)
    with silence_decoders(), decoding(index, row), index.open(row) as stream:
        return decode(stream, canvas, index.file_channels, scale)


def decode(stream: BinaryIO, canvas: int, channels: int = 3, scale: Scale | None = None) -> Canvas:
    """Return the image in some bytes as `read_canvas` does.

    Raises what Pillow does, and UnreadableSampleError if it is too large.
    """
    with open_image(stream) as image:
        image.draft("RGB" if channels == 3 else "L", (canvas, canvas))  # JPEG decodes at 1/2, 1/4 or 1/8 for free
        check_pixels(image.width, image.height)
        upright = to_eight_bits(ImageOps.exif_transpose(image), scale)
        fitted = fit(_without_alpha(upright).convert("RGB" if channels == 3 else "L"), canvas)
        return fitted if channels == 3 else fitted[..., None]


def is_deep(image: Image.Image) -> bool:
    """Return whether pixels have more than 8 bits."""
    return image.mode in ("I", "F") or image.mode.startswith("I;16")


def to_eight_bits(image: Image.Image, scale: Scale | None) -> Image.Image:
    """Return an image of 8 bits; without a scale, the upper 8 of 16 bits.

    Raises UnreadableSampleError for other types without a scale.
    """
    if not is_deep(image):
        return image
    values = np.asarray(image)
    if scale is not None:
        return Image.fromarray(scale(values))
    if not image.mode.startswith("I;16"):
        raise UnreadableSampleError(f"{image.mode} pixels among images of 8 bits (name their --range)")
    return Image.fromarray((values >> 8).astype(np.uint8))


def check_pixels(width: int, height: int) -> None:
    """Raise UnreadableSampleError for what is too large to decode; only a header has been read."""
    if width * height > _MOST_PIXELS:
        raise UnreadableSampleError(f"{width} x {height} pixels would take gigabytes to decode (shrink it)")


def short_sides(index: Index) -> NDArray[np.int64]:
    """Return the short sides in pixels of some images spread over the data, reading headers only.

    Raises SslkitError if not one of them can be read.
    """
    if index.array is not None:
        return np.full(1, min(index.array.shape[1:3]))
    return np.array(inspect_samples(index, lambda row: _short_side(index, row), "image"))


def _short_side(index: Index, row: int) -> int:
    with index.open(row) as stream, open_image(stream) as image:
        return min(image.size)


def open_image(stream: BinaryIO) -> Image.Image:
    """Return the image in some bytes, of which the header was read.

    Pillow refuses images from a number of pixels on. A JPEG may have more, because it is decoded at a fraction of its size;
    raises UnreadableSampleError for any other.
    """
    start = stream.tell()
    jpeg = stream.read(3) == b"\xff\xd8\xff"
    stream.seek(start)
    if jpeg:
        image: Image.Image = JpegImagePlugin.jpeg_factory(stream)
        return image
    try:
        return Image.open(stream)
    except Image.DecompressionBombError as error:
        raise UnreadableSampleError("so many pixels would take gigabytes to decode (shrink it)") from error


def _without_alpha(image: Image.Image) -> Image.Image:
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image


def fit(image: Image.Image, canvas: int) -> Canvas:
    """Return an image as a canvas: the short side shrunk or enlarged to it, the middle cut out."""
    if image.size != (canvas, canvas):
        image = ImageOps.fit(image, (canvas, canvas), Image.Resampling.BILINEAR, centering=(0.5, 0.5))
    return np.asarray(image)


def _fit_array(array: NDArray[Any], canvas: int, scale: Scale | None) -> Canvas:
    if scale is not None:
        array = scale(array)
    if array.shape[:2] == (canvas, canvas):
        return np.asarray(array)
    return np.stack([fit(Image.fromarray(np.ascontiguousarray(array[..., c])), canvas) for c in range(array.shape[2])], -1)
