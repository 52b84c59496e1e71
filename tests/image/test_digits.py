"""The images of the demo: digits of which only the shape tells the class."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError
from sslkit.image.digits import make_images, write_digits


def test_images_of_the_demo() -> None:
    images: dict[str, dict[Path, NDArray[np.uint8]]] = {"train": {}, "test": {}}
    for file, image in make_images(seed=0):
        images[file.parts[0]][file] = image
    rows = {part: [file.name[:4] for file in files] for part, files in images.items()}
    assert len(rows["test"]) == 599 == len(set(rows["test"])) and len(rows["train"]) == 3594 == 3 * len(set(rows["train"]))
    assert not set(rows["train"]) & set(rows["test"])
    pixels = np.stack(list(images["test"].values()))
    assert pixels.shape == (599, 32, 32, 3) and pixels.dtype == np.uint8
    # Neither color nor brightness tells the class: means of classes differ as little as those of parts drawn at random.
    labels = np.array([int(file.parts[1]) for file in images["test"]])
    assert set(labels) == set(range(10))
    shuffled = np.random.default_rng(0).permutation(labels)
    spread, random = (
        np.stack([pixels[each == digit].mean(axis=(0, 1, 2)) for digit in range(10)]).std(axis=0).max()
        for each in (labels, shuffled)
    )
    assert spread < 2 * random


def test_the_seed_decides() -> None:
    first, same, other = (list(islice(make_images(seed), 8)) for seed in (1, 1, 2))
    assert all(a == b and (x == y).all() for (a, x), (b, y) in zip(first, same, strict=True))
    assert [file for file, _ in first] != [file for file, _ in other]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(SslkitError, match="is there already"):
        write_digits(tmp_path, seed=0)
