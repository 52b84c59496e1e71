"""The compact cache: what is stored, by several processes, and what training sees."""

import io
import multiprocessing
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.data.index import Index
from sslkit.data.loader import Loader, epoch_batches
from sslkit.image.canvas import Canvases
from sslkit.image.canvas_cache import choose_cache, raw_bytes
from sslkit.image.compact import CompactStore
from sslkit.image.decode import CanvasFormat, read_canvas
from sslkit.image.source import ImageSource
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]

FORM, COUNT = CanvasFormat(32, "whole"), 24


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """Return a folder of smooth images, of which one is broken, one gray, and one longer than 2:1."""
    folder = tmp_path / "photographs"
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(COUNT):
        coarse = Image.fromarray(random.integers(0, 255, (5, 6, 3), dtype=np.uint8))
        image = coarse.resize((120, 40) if number == 7 else (60, 50), Image.Resampling.BICUBIC)
        image.convert("L" if number == 5 else "RGB").save(folder / f"{number:02}.jpg", quality=95)
    (folder / "03.jpg").write_bytes(b"broken")
    return folder


def index_of(folder: Path) -> Index:
    return ImageSource.read_index(str(folder), DataSpec(reindex=True))


def compact(index: Index, limit: float = 1) -> Canvases:
    cache = choose_cache(index, FORM, "compact", limit)
    assert cache.kind == "compact" and cache.folder is not None
    return Canvases(index, FORM, None, None, CompactStore(cache.folder, len(index), cache.limit), cache.bytes)


def test_every_read_shows_the_same_pixels(photographs: Path) -> None:
    index, rows = index_of(photographs), np.arange(COUNT)
    canvases = compact(index)
    first = canvases.read(rows)
    assert list(first.broken) == [3] and not first.canvases[3].any()
    exact = [read_canvas(index, row, FORM).canvas for row in (0, 5, 7)]
    errors = [np.abs(first.canvases[row].astype(int) - canvas).max() for row, canvas in zip((0, 5, 7), exact, strict=True)]
    assert 0 < errors[0] < 40 and errors[2] == 0  # what is cut is not kept
    assert canvases.compact is not None and np.flatnonzero(canvases.compact.lacks(rows)).tolist() == [3, 7]
    for path in photographs.iterdir():
        if path.name not in ("03.jpg", "07.jpg"):
            path.unlink()
    for again in (canvases, Canvases(index, FORM, None, None, canvases.compact)):
        second = again.read(rows)
        assert np.array_equal(first.canvases, second.canvases) and np.array_equal(first.aspects, second.aspects)
    assert "compact canvases are decoded in every epoch" in canvases.workers("auto")[1]


def test_workers_fill_it_together_and_show_what_one_process_does(photographs: Path) -> None:
    spec = DataSpec(data=str(photographs), size=28, canvas=32, cache="compact")
    source = ImageSource.for_training(index_of(photographs), spec)
    batches = epoch_batches(COUNT, 8, 0, 0)
    with closing(Loader(source, 3, substitute=True)) as loader:
        filled = [batch["canvas"].numpy() for _ in range(2) for batch in loader(batches)]
    alone = [batch["canvas"].numpy() for _ in range(2) for batch in Loader(source, 0, substitute=True)(batches)]
    assert all(map(np.array_equal, filled, alone))
    assert source.resolved["cache"][0] == "compact" and source.training_fingerprint().endswith("-compact")


def _fill(store: CompactStore, start: int) -> None:
    for row in np.roll(np.arange(200), start):
        store.write(int(row), bytes([row]) * (row + 1), row / 200)


def test_several_processes_append_at_once(tmp_path: Path) -> None:
    store = CompactStore(tmp_path, 200, 10**6)
    processes = [multiprocessing.Process(target=_fill, args=(store, 50 * number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert not store.lacks(np.arange(200)).any()
    for row in range(200):
        assert store.read(row) == (bytearray([row]) * (row + 1), np.float32(row / 200))


def test_what_was_interrupted_or_damaged_is_missing(tmp_path: Path) -> None:
    store = CompactStore(tmp_path, 3, 100)
    with open(tmp_path / "canvases.bin", "ab") as stream:  # of a process that was killed before it noted the place
        stream.write(b"half")
    store.write(1, b"canvas", 1.5)
    assert store.read(0) is None and store.read(1) == (bytearray(b"canvas"), 1.5)
    with open(tmp_path / "canvases.bin", "r+b") as stream:
        stream.seek(5)
        stream.write(b"?")
    assert store.read(1) is None
    store.write(1, b"canvas", 1.5)
    assert CompactStore(tmp_path, 3, 100).read(1) == (bytearray(b"canvas"), 1.5)
    (tmp_path / "canvases.bin").unlink()
    assert store.read(1) is None


def test_it_stays_within_its_limit(tmp_path: Path) -> None:
    store = CompactStore(tmp_path, 10, 25)
    for row in range(10):
        store.write(row, b"ten bytes.", 1)
    assert (tmp_path / "canvases.bin").stat().st_size == 20
    assert store.lacks(np.arange(10)).tolist() == [False] * 2 + [True] * 8


def test_auto_is_raw_then_compact_then_off(photographs: Path, tmp_path: Path) -> None:
    index = index_of(photographs)
    raw = raw_bytes(index, FORM, None) / 1e9
    assert choose_cache(index, FORM, "auto", 1.1 * raw).kind == "on"
    middle = choose_cache(index, FORM, "auto", 0.9 * raw)
    assert middle.kind == "compact" and "GB of canvases exceed --cache-limit" in middle.reason and "as JPEG" in middle.reason
    none = choose_cache(index, FORM, "auto", middle.bytes / 2e9)
    assert none.kind == "off" and "compact ones exceed --cache-limit" in none.reason
    assert choose_cache(index, CanvasFormat(32), "auto", 0.9 * raw).kind == "off"  # evaluations
    assert choose_cache(index, CanvasFormat(32), "compact", 1).kind == "on"
    with pytest.raises(SslkitError, match=r"--cache: about .* of compact ones exceed --cache-limit"):
        choose_cache(index, FORM, "compact", middle.bytes / 2e9)


def test_deep_images_are_refused(tmp_path: Path) -> None:
    for number in range(2):
        Image.fromarray(np.full((8, 8), 1000 * number, dtype=np.uint16)).save(tmp_path / f"{number}.png")
    with pytest.raises(SslkitError, match="--cache: a compact cache holds images of 8 bits"):
        ImageSource.for_training(index_of(tmp_path), DataSpec(data=str(tmp_path), cache="compact", range="0,1000"))


def test_a_run_records_it_and_resumes_exactly(sslkit: Run, photographs: Path, quick: list[str], tmp_path: Path) -> None:
    arguments = ["--data", photographs, *quick, "--max-broken", 0.1, "--workers", 0]
    whole = sslkit("pretrain", "rotation", *arguments, "--cache", "compact", "--epochs", 2, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.err
    assert "training sees canvases as JPEG keeps them" in whole.err
    first = sslkit("pretrain", "rotation", *arguments, "--cache", "compact", "--epochs", 1, "--out", tmp_path / "run")
    assert first.code == 0, first.err
    other = sslkit(
        "pretrain", "rotation", *arguments, "--cache", "off", "--out", tmp_path / "run", "--resume", "--extend-to", 2
    )
    assert other.code == 2 and "check --data, and --cache if only one of the two is compact" in other.err
    again = sslkit("pretrain", "rotation", *arguments, "--out", tmp_path / "run", "--resume", "--extend-to", 2)
    assert again.code == 0 and "training sees canvases as JPEG keeps them" in again.err, again.err


def test_encoded_bytes_are_plain_jpeg(photographs: Path) -> None:
    canvases = compact(index_of(photographs))
    canvases.read(np.arange(1))
    assert canvases.compact is not None
    stored = canvases.compact.read(0)
    assert stored is not None and Image.open(io.BytesIO(stored[0])).size == (32, 32)
