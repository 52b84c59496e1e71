"""Decoding, the canvas cache, quarantine and the loader."""

import pickle
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.data import cache
from sslkit.data.index import Index
from sslkit.data.loader import Loader, epoch_batches, ordered_batches
from sslkit.image.canvas import Canvases
from sslkit.image.canvas_cache import choose_cache
from sslkit.image.decode import CanvasFormat, image_sizes, read_canvas
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

FORM = CanvasFormat(8)


def canvas_of(tmp_path: Path, image: Image.Image, name: str = "x.png", **save: object) -> np.ndarray:
    image.save(tmp_path / name, **save)
    return read_canvas(ImageSource.read_index(str(tmp_path), DataSpec(reindex=True)), 0, FORM).canvas


def test_modes_become_rgb(tmp_path: Path) -> None:
    gray = Image.new("L", (8, 8), 100)
    assert (canvas_of(tmp_path, gray) == 100).all()
    assert canvas_of(tmp_path, gray.convert("P")).shape == (8, 8, 3)
    assert (canvas_of(tmp_path, Image.new("1", (8, 8), 1)) == 255).all()
    assert (canvas_of(tmp_path, Image.new("RGBA", (8, 8), (10, 20, 30, 0))) == 255).all()  # transparent: white
    half = canvas_of(tmp_path, Image.new("LA", (8, 8), (0, 128)))
    assert abs(int(half[0, 0, 0]) - 127) <= 1
    sixteen = Image.fromarray(np.full((8, 8), 200 * 256 + 7, dtype=np.uint16))
    assert (canvas_of(tmp_path, sixteen) == 200).all()
    palette = Image.new("P", (8, 8), 0)
    palette.putpalette([9, 9, 9])
    assert (canvas_of(tmp_path, palette, transparency=0) == 255).all()


def test_cmyk_jpeg(tmp_path: Path) -> None:
    red = canvas_of(tmp_path, Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "x.jpg")
    assert red[0, 0, 0] > 200 and red[0, 0, 1] < 50


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (value, value, value)) for value in (0, 255)]
    assert (canvas_of(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:]) == 0).all()


def test_orientation_is_applied(tmp_path: Path) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    picture[0] = 255  # a white top edge
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by a quarter to the right
    turned = canvas_of(tmp_path, Image.fromarray(picture), exif=exif)
    assert (turned[:, -1] == 255).all() and (turned[:, 0] == 0).all()


def test_short_side_fits_and_the_middle_is_cut_out(tmp_path: Path) -> None:
    picture = np.zeros((8, 24, 3), np.uint8)
    picture[:, 8:16] = 255
    assert (canvas_of(tmp_path, Image.fromarray(picture)) == 255).all()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "float", "gone", "changed"])
def test_broken_files_say_why(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("x.tif" if kind == "float" else "x.png")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8, 3), dtype=np.uint8)).save(file)
    data = file.read_bytes()
    if kind == "float":
        Image.fromarray(np.zeros((8, 8), np.float32)).save(file)
    elif kind in ("truncated", "empty", "text"):
        file.write_bytes({"truncated": data[: len(data) // 2], "empty": b"", "text": b"hello"}[kind])
    index = ImageSource.read_index(str(tmp_path), DataSpec(reindex=True))
    if kind == "gone":
        file.unlink()
    elif kind == "changed":
        file.write_bytes(data + b"!")
    with pytest.raises(
        UnreadableSampleError,
        match={"gone": "no such file", "changed": "changed since", "float": "among images of 8 bits"}.get(kind, "Error"),
    ):
        read_canvas(index, 0, FORM)


def folder(tmp_path: Path, count: int = 10, broken: tuple[int, ...] = ()) -> Index:
    for i in range(count):
        path = tmp_path / f"{i:02}.png"
        Image.new("RGB", (8, 8), (i, i, i)).save(path)
        if i in broken:
            path.write_bytes(b"broken")
    return ImageSource.read_index(str(tmp_path), DataSpec(reindex=True))


def test_cache_is_read_instead_of_the_files(tmp_path: Path) -> None:
    index = folder(tmp_path)
    place = choose_cache(index, FORM, "on", 1).folder
    canvases = Canvases(index, FORM, place)
    rows = np.arange(10)
    first = canvases.read(rows)
    assert not first.broken and canvases.workers("auto") == (0, "all canvases are cached")
    for path in tmp_path.glob("*.png"):
        path.unlink()
    again = Canvases(index, FORM, place).read(rows)
    assert not again.broken and np.array_equal(first.canvases, again.canvases)
    assert np.array_equal(pickle.loads(pickle.dumps(canvases)).read(rows).canvases, first.canvases)


@pytest.mark.parametrize("interrupted", ["canvases", "aspects", "state"])
def test_rows_that_another_process_stores_meanwhile_are_not_black(tmp_path: Path, interrupted: str) -> None:
    index, rows = folder(tmp_path), np.arange(10)
    place = choose_cache(index, FORM, "on", 1).folder
    canvases, other = Canvases(index, FORM, place), Canvases(index, FORM, place)

    class Interrupted(np.ndarray):
        def __getitem__(self, key: object) -> object:
            if self is maps[interrupted]:
                other.read(rows)  # the other process comes first by this much
            return super().__getitem__(key)

    maps = {name: opened.view(Interrupted) for name, opened in canvases._open().items()}
    canvases._maps = maps
    batch = canvases.read(rows)
    assert not batch.broken and [int(image[0, 0, 0]) for image in batch.canvases] == list(range(10))


@pytest.mark.parametrize("damaged", ["canvases.npy", "aspects.npy", "state.npy"])
@pytest.mark.parametrize("how", ["gone", "cut"])
def test_a_damaged_cache_is_filled_again(tmp_path: Path, damaged: str, how: str) -> None:
    index = folder(tmp_path)
    place = choose_cache(index, FORM, "on", 1).folder
    assert place is not None
    first = Canvases(index, FORM, place).read(np.arange(10)).canvases
    if how == "gone":
        (place / damaged).unlink()
    else:
        (place / damaged).write_bytes(b"\x93NUMPY")
    assert np.array_equal(Canvases(index, FORM, place).read(np.arange(10)).canvases, first)


def test_cache_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a").mkdir()
    index = folder(tmp_path / "a")
    size = 10 * 8 * 8 * 3 / 1e9
    assert choose_cache(index, FORM, "auto", size / 2).folder is None
    with pytest.raises(SslkitError, match="exceed --cache-limit"):
        choose_cache(index, FORM, "on", size / 2)
    small = choose_cache(index, FORM, "on", 1).folder
    Canvases(index, FORM, small).read(np.arange(10))
    other = choose_cache(index, CanvasFormat(9), "on", 1.5 * size).folder  # no room for both, but this process uses them
    assert small is not None and other is not None
    assert {entry.folder for entry in cache.stored()} == {small, other}
    (mark,) = small.glob("use.*")
    mark.rename(small / f"use.{platform.node()}.{2**22 + 1}")  # of a process that has ended
    choose_cache(index, CanvasFormat(9), "on", 1.5 * size)  # the one that nobody uses goes
    assert [entry.folder for entry in cache.stored()] == [other]
    assert cache.clear() > 0
    assert cache.stored() == []


@pytest.mark.parametrize("workers", [0, 2])
def test_broken_samples_are_replaced_the_same_way_every_time(tmp_path: Path, workers: int) -> None:
    index = folder(tmp_path, broken=(3, 4))
    loader = Loader(ImageSource(index, 8, Canvases(index, FORM, None), {}), workers, substitute=True)
    (raw,) = loader([np.arange(10)])
    assert raw["index"].tolist() == [0, 1, 2, 5, 5, 5, 6, 7, 8, 9]
    assert raw["canvas"][:, 0, 0, 0].tolist() == raw["index"].tolist()
    assert [row for row, _ in raw["broken"]] == [3, 4]
    left_out = Loader(ImageSource(index, 8, Canvases(index, FORM, None), {}), workers, substitute=False)
    assert [raw["index"].tolist() for raw in left_out(ordered_batches(10, 5))] == [[0, 1, 2], [5, 6, 7, 8, 9]]


def test_only_broken_files(tmp_path: Path) -> None:
    index = folder(tmp_path, 3, broken=(0, 1, 2))
    with pytest.raises(SslkitError, match="none of 3 files tried"):
        image_sizes(index)
    with pytest.raises(SslkitError, match="none of the 3 images"):
        next(Loader(ImageSource(index, 8, Canvases(index, FORM, None), {}), 0, substitute=True)([np.arange(3)]))


def test_epochs_are_permutations_that_differ_and_repeat() -> None:
    first, again, second = (np.concatenate(epoch_batches(23, 5, seed=1, epoch=epoch)) for epoch in (0, 0, 1))
    assert len(first) == 20 and len(set(first.tolist())) == 20
    assert np.array_equal(first, again)
    assert not np.array_equal(first, second)


def test_balanced_epochs() -> None:
    import torch

    weights = torch.tensor([1.0] * 90 + [9.0] * 10)
    indices = np.concatenate(epoch_batches(100, 10, seed=0, epoch=0, weights=weights))
    assert 30 < (indices >= 90).sum() < 70


def test_a_process_that_forgets_its_loader_ends(digits: Path) -> None:
    code = f"""
import numpy as np
from sslkit import PretrainSpec
from sslkit.image.source import ImageSource
from sslkit.data.loader import Loader
images = ImageSource.open(PretrainSpec(task="x", data={str(digits)!r}, cache="off"))
batches = Loader(images, 2, substitute=True)([np.arange(4)] * 20)
print(next(batches)["index"].tolist())
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert ran.stdout == "[0, 1, 2, 3]\n"
