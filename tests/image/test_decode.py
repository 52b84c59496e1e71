"""Decoding images of any size: a large JPEG at a fraction of its size, anything else that is too large refused."""

import io

import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import UnreadableSampleError
from sslkit.image.decode import CanvasFormat, decode, open_image


def encoded(width: int, height: int, kind: str) -> io.BytesIO:
    stream = io.BytesIO()
    Image.new("L", (width, height), 150).save(stream, kind)
    stream.seek(0)
    return stream


def test_a_jpeg_of_200_million_pixels_is_decoded() -> None:
    canvas = decode(encoded(20_000, 10_000, "JPEG"), CanvasFormat(16)).canvas
    assert canvas.shape == (16, 16, 3) and np.abs(canvas.astype(int) - 150).max() <= 2


def test_other_images_of_that_size_are_refused_in_our_words() -> None:
    with pytest.raises(UnreadableSampleError, match=r"would take gigabytes to decode \(shrink it\)"):
        decode(encoded(20_000, 10_000, "PNG"), CanvasFormat(16))


def test_the_stream_may_begin_anywhere() -> None:
    stream = io.BytesIO(b"before" + encoded(8, 6, "JPEG").read())
    stream.seek(6)
    assert open_image(stream).size == (8, 6)
