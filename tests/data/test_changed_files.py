"""A file that changed after it was indexed is read anew, and never taken for what it was."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslkit.data.locations import find_parts
from sslkit.image.options import IMAGES
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec
from sslkit.specs.train import PretrainSpec


def picture(path: Path, value: int) -> Path:
    """Write an image whose file has the same size whatever its value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (value, value, value)).save(path)
    return path


def first_value(data: Path) -> int:
    """Return the first pixel of the first image, from the canvas cache if it is there."""
    source = ImageSource.open(PretrainSpec(task="rotation", data=str(data), image={"size": 8, "canvas": 8}, cache="on"))
    arrays, broken = source.read(np.array([0]))
    assert not broken
    return int(arrays["canvas"][0, 0, 0, 0])


def rewrite(file: Path) -> None:
    with open(file, "r+b") as stream:
        stream.write(picture(file.parent.parent / "new.bmp", 200).read_bytes())


def replace_and_keep_times(file: Path) -> None:
    status, new = file.stat(), picture(file.parent / "new.bmp", 200)
    os.utime(new, ns=(status.st_atime_ns, status.st_mtime_ns))
    os.replace(new, file)


@pytest.mark.parametrize("change", [rewrite, replace_and_keep_times])
@pytest.mark.parametrize("listed", [False, True])
def test_new_pixels_are_read(change: Callable[[Path], None], listed: bool, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    file = picture(folder / "1.bmp", 100)
    picture(folder / "2.bmp", 50)
    (tmp_path / "list.txt").write_text("data/1.bmp\ndata/2.bmp\n")
    data, size = tmp_path / "list.txt" if listed else folder, file.stat().st_size
    assert first_value(data) == first_value(data) == 100
    change(file)
    assert file.stat().st_size == size
    assert first_value(data) == 200


def test_a_file_that_grows_during_a_run_is_reported(tmp_path: Path) -> None:
    file = picture(tmp_path / "data" / "1.bmp", 100)
    picture(tmp_path / "data" / "2.bmp", 100)
    spec = PretrainSpec(task="rotation", data=str(tmp_path / "data"), image={"size": 8}, cache="off")
    source = ImageSource.open(spec)
    rewrite(file)  # of the same size: read as it is now
    assert source.read(np.array([0]))[1] == {}
    file.write_bytes(file.read_bytes() + b"more")
    assert source.read(np.array([0]))[1] == {0: "changed since it was indexed (start again to read it anew)"}


def test_features_are_those_of_the_new_file(trained: Path, digits: Path, tmp_path: Path) -> None:
    index = ImageSource.read_index(find_parts(str(digits), IMAGES)["test"], DataSpec())
    file = Path(index.root, index.paths[0])
    before, status = index.key(), file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    try:
        assert ImageSource.read_index(find_parts(str(digits), IMAGES)["test"], DataSpec()).key() != before
    finally:
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
