"""Handwritten digits in random colors, sizes and places, made of those that ship with scikit-learn.

Only the shape tells the digit, and which way up it is; pixels at the same place mean nothing. No torch is imported here.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.console import say
from sslkit.contract.errors import SslkitError

SIDE = 32  # of the images, in pixels
_DIGIT = (20, 30)  # smallest and largest side of a digit
_TILT = 15  # degrees; more would blur what is upright
_SHADES = 30  # largest difference of a background from its mean color, of 255
_CONTRAST = 100  # least difference of mean color between a digit and its background
_COPIES = 3  # images of each digit in train/, each with another background and color
_TEST = 3  # one in so many digits is in test/


def write_digits(folder: Path, seed: int) -> None:
    """Write the images as `folder/train/DIGIT/*.png` and `folder/test/DIGIT/*.png`; a folder with files is an SslkitError."""
    if folder.exists() and any(folder.iterdir()):
        raise SslkitError(f"{folder} is there already", "choose another folder", flag="out")
    try:
        written = 0
        for file, image in make_images(seed):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(folder / file)
            written += 1
    except OSError as error:
        raise SslkitError(f"cannot write to {folder}: {error.strerror}", flag="out") from error
    say(f"{written:,} images in {folder}: scikit-learn's handwritten digits, painted in random colors and places")


def make_images(seed: int) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Return all images `[32, 32, 3]` and their files: `train/DIGIT/ROW-COPY.png`, three of each digit, and `test/`, one.

    No digit is in both parts.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    random = np.random.default_rng(seed)
    order = random.permutation(len(digits.images))
    for place, row in enumerate(order):
        part, copies = ("test", 1) if place < len(order) // _TEST else ("train", _COPIES)
        for copy in range(copies):
            image = _paint(digits.images[row], _make_background(random), random)
            yield Path(part, str(digits.target[row]), f"{row:04}-{copy}.png"), image


def _make_background(random: np.random.Generator) -> NDArray[np.float64]:
    """Return a random color gradient `[32, 32, 3]`, 0 to 255."""
    coarse = random.uniform(0, 255, 3) + random.uniform(-_SHADES, _SHADES, (4, 4, 3))
    picture = Image.fromarray(coarse.clip(0, 255).astype(np.uint8))
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BICUBIC), dtype=np.float64)


def _paint(digit: NDArray[np.float64], background: NDArray[np.float64], random: np.random.Generator) -> NDArray[np.uint8]:
    """Return a digit `[8, 8]`, 0 to 16, in a random color, size, tilt and place on a background."""
    side = int(random.integers(_DIGIT[0], _DIGIT[1] + 1))
    shape = Image.fromarray((digit * 255 / 16).astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    shape = shape.rotate(random.uniform(-_TILT, _TILT), Image.Resampling.BICUBIC)
    left, top = random.integers(0, SIDE - side + 1, 2)
    opacity = np.zeros((SIDE, SIDE, 1))
    opacity[top : top + side, left : left + side, 0] = np.minimum(1.3 * np.asarray(shape) / 255, 1)  # strokes are gray
    color = random.uniform(0, 255, 3)
    while abs(color.mean() - background.mean()) < _CONTRAST:
        color = random.uniform(0, 255, 3)
    return (background + opacity * (color - background)).round().astype(np.uint8)
