"""Decoding images of any size: a large JPEG at a fraction of its size, anything else that is too large refused."""

import io
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.loader import Loader
from sslkit.image.decode import CanvasFormat, decode, fit, open_image
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec


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


def test_workers_decode_jpeg_as_pillow_does_and_are_silent(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Read whole and damaged JPEG files of all kinds in a worker, and in this process by Pillow."""
    random = np.random.default_rng(0)
    for number in range(240):
        pixels = Image.fromarray(random.integers(0, 255, (6, 8, 3), dtype=np.uint8)).resize((80, 60), Image.Resampling.BICUBIC)
        mode, exif = ("RGB", "L", "CMYK")[number % 3], Image.Exif()
        exif[0x0112] = number % 10
        stream = io.BytesIO()
        kinds = {
            "progressive": number % 2 == 1,
            "quality": 30 + number % 70,
            "icc_profile": b"profile" if number % 5 == 0 else None,
        }
        pixels.convert(mode).save(stream, "JPEG", subsampling=number % 3, exif=exif if number % 4 == 0 else b"", **kinds)
        data = bytearray(stream.getvalue())
        if number % 6 == 1:
            data = data[: random.integers(2, len(data))]
        elif number % 6 > 2:
            for place in random.integers(2, len(data), 1 + number % 9):
                data[place] = random.integers(256)
        (tmp_path / f"{number:03}.jpg").write_bytes(data)
    source = ImageSource.for_training(
        ImageSource.read_index(str(tmp_path), DataSpec()), DataSpec(size=28, canvas=32, cache="off")
    )
    rows = np.arange(240)
    expected, reasons = source.read(rows)
    with closing(Loader(source, 1, substitute=False)) as loader:
        (batch,) = loader([rows])
    assert list(map(tuple, batch["broken"])) == list(reasons.items()) and 20 < len(reasons) < 120
    good = np.setdiff1d(rows, list(reasons))
    assert np.array_equal(batch["canvas"].numpy(), expected["canvas"][good])
    assert np.array_equal(batch["aspect"].numpy(), expected["aspect"][good])
    assert "JPEG" not in capfd.readouterr().err


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (37, 50), (64, 64), (300, 200)])
def test_training_canvases_are_within_a_level_of_pillows(size: tuple[int, int], channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert("L" if channels == 1 else "RGB")
    canvas = fit(image, CanvasFormat(48, "whole")).canvas
    expected = np.asarray(image.resize((48, 48), Image.Resampling.BILINEAR)).reshape(48, 48, channels)
    assert canvas.shape == expected.shape and np.abs(canvas.astype(int) - expected).max() <= 1
