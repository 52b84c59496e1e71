"""Decode one image to a square uint8 canvas, or raise with the reason."""

from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, JpegImagePlugin

from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.decode import decoding, inspect_samples, silence_decoders
from sslkit.data.index import Index

Canvas = NDArray[np.uint8]  # [canvas, canvas, C]


_MOST_PIXELS = 90_000_000  # to be decoded at once; a worker that holds more may end them all


def read_canvas(index: Index, row: int, canvas: int) -> Canvas:
    """Return sample `row` as `[canvas, canvas, C]`: the short side shrunk to the canvas, the middle cut out.

    Orientation (EXIF) is applied; only the first frame is read; transparency is put on white; 16 bits become 8; gray,
    palette and CMYK become RGB. Raises Broken with a reason.
    """
    if index.array is not None:
        return _fit_array(index.array[row], canvas)
    with silence_decoders(), decoding(index, row), index.open(row) as stream:
        return decode(stream, canvas)


def decode(stream: BinaryIO, canvas: int) -> Canvas:
    """Return the image in some bytes as `read_canvas` does; raises what Pillow does, and Broken if it is too large."""
    with open_image(stream) as image:
        image.draft("RGB", (canvas, canvas))  # JPEG decodes at 1/2, 1/4 or 1/8 for free
        check_pixels(image.width, image.height)
        return fit(_rgb(ImageOps.exif_transpose(image)), canvas)


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


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise UnreadableSampleError(f"{image.mode} pixels have no known range (convert to 8 or 16 bits)")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def fit(image: Image.Image, canvas: int) -> Canvas:
    """Return an image as a canvas: the short side shrunk or enlarged to it, the middle cut out."""
    if image.size != (canvas, canvas):
        image = ImageOps.fit(image, (canvas, canvas), Image.Resampling.BILINEAR, centering=(0.5, 0.5))
    return np.asarray(image)


def _fit_array(array: NDArray[np.uint8], canvas: int) -> Canvas:
    if array.shape[:2] == (canvas, canvas):
        return np.asarray(array)
    return np.stack([fit(Image.fromarray(np.ascontiguousarray(array[..., c])), canvas) for c in range(array.shape[2])], -1)
