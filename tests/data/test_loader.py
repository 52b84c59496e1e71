"""Batches that workers read in pieces."""

import shutil
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import Labels, ReadSeed, Source
from sslkit.contract.task import DataInfo
from sslkit.data import worker_process
from sslkit.data.loader import Loader, epoch_batches, mixed_batches, ordered_batches


class Numbers(Source):
    """Read numbers and what is drawn for them; every seventh is broken."""

    info = DataInfo(samples=60, size=1, channels=1)
    noun, location = "numbers", "here"

    def read(self, rows: NDArray[np.int64], draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        values = [0.0 if draw is None else draw.generator(int(row)).random() for row in rows]
        broken = {place: f"{row} is broken" for place, row in enumerate(rows) if row % 7 == 3}
        return {"number": np.repeat(rows[:, None], 250, axis=1).astype(np.float32), "random": np.array(values)}, broken


def numbers() -> Numbers:
    source = Numbers()
    source.labels = Labels(np.arange(60) % 5, tuple("abcde"))
    return source


@pytest.mark.parametrize("substitute", [True, False])
@pytest.mark.parametrize("rows_of_pieces", [1, 5])
def test_batches_of_pieces_are_those_of_one_process(
    monkeypatch: pytest.MonkeyPatch, rows_of_pieces: int, substitute: bool
) -> None:
    monkeypatch.setattr(worker_process, "_MOST_PREFETCHED", rows_of_pieces * 2 * 2 * 1008)
    batches, seed = epoch_batches(60, 12, 0, 0), ReadSeed(3, 1)
    expected = list(Loader(numbers(), 0, substitute)(batches, seed))
    with closing(Loader(numbers(), 2, substitute)) as loader:
        assert loader._rows_of_pieces == rows_of_pieces
        for _ in range(2):  # epochs
            for batch, other in zip(loader(batches, seed), expected, strict=True):
                assert batch.keys() == other.keys() == {"number", "random", "label", "index", "broken"}
                assert batch["broken"] == other["broken"]
                for name in batch.keys() - {"broken"}:
                    assert batch[name].dtype == other[name].dtype and torch.equal(batch[name], other[name])


def test_a_batch_that_fits_is_read_whole() -> None:
    with closing(Loader(numbers(), 1, True)) as loader:
        assert [len(piece) for piece in loader._split(np.arange(60))] == [60]


def test_small_shared_memory_makes_pieces_smaller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=64_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    assert worker_process.rows_of_pieces(numbers(), 2) == 7  # of 1008 bytes, twice for each worker, in half of it
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert worker_process.rows_of_pieces(numbers(), 2) == 1
    with pytest.raises(
        SslkitError, match=r"--workers: 40 workers .*use --workers 31, or a larger /dev/shm \(docker run --shm-size\)"
    ):
        worker_process.rows_of_pieces(numbers(), 40)


class Everything(Numbers):
    def read(self, rows: NDArray[np.int64], draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        return super().read(rows, draw)[0], dict.fromkeys(range(len(rows)), "broken")


def test_a_piece_that_cannot_be_read_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker_process, "_MOST_PREFETCHED", 2 * 2 * 1008)
    with closing(Loader(Everything(), 2, True)) as loader, pytest.raises(SslkitError, match="none of the 60 numbers in here"):
        next(loader(ordered_batches(60, 12)))
    with closing(Loader(Everything(), 2, False)) as loader:
        assert [len(batch["index"]) for batch in loader(ordered_batches(24, 12))] == [0, 0]


class Large(Numbers):
    def read(self, rows: NDArray[np.int64], draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        array = worker_process.zeros((len(rows), 1000), np.uint16)
        array += rows[:, None].astype(np.uint16)
        return {"array": array}, {}


@pytest.mark.parametrize("workers", [0, 1])
def test_arrays_in_shared_memory(workers: int) -> None:
    with closing(Loader(Large(), workers, True)) as loader:
        (batch,) = loader([np.arange(60)])
        assert batch["array"].dtype == torch.uint16 and batch["array"].is_shared() == bool(workers)
        assert np.array_equal(batch["array"][:, 7].numpy(), np.arange(60))


def test_batches_mix_labeled_and_other_samples() -> None:
    labeled = np.arange(60) % 6 == 0
    first, again, other = (mixed_batches(labeled, 4, 12, seed=0, epoch=epoch) for epoch in (0, 0, 1))
    assert len(first) == 5 and all(len(batch) == 12 and labeled[batch].sum() == 4 for batch in first)
    assert all((left == right).all() for left, right in zip(first, again, strict=True))
    assert not all((left == right).all() for left, right in zip(first, other, strict=True))
    rows = np.concatenate(first)
    counts = np.bincount(rows, minlength=60)
    assert (counts[labeled] == 2).all() and counts[~labeled].max() == 1  # 20 of 10 samples, 40 of 50
    assert len({int(place) for batch in first for place in labeled[batch].nonzero()[0]}) > 6  # in random places


@pytest.mark.parametrize("count", [12, 1])
def test_batches_of_labeled_samples_alone_and_of_few(count: int) -> None:
    labeled = np.arange(60) < 3
    batches = mixed_batches(labeled, count, 12, seed=0, epoch=0)
    assert [int(labeled[batch].sum()) for batch in batches] == [count] * 5
