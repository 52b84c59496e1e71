"""Batches of canvases, in an order that depends on nothing but seed and epoch."""

import os
import signal
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslkit.data.canvas import Canvases
from sslkit.errors import SslkitError

Rows = NDArray[np.int64]


class Loader:
    """Deliver batches `{"image": uint8 [B, canvas, canvas, C], "index": int64 [B], "broken": [(row, reason)]}`."""

    def __init__(self, canvases: Canvases, workers: int, substitute: bool, pin_memory: bool = False) -> None:
        self._batches: list[Rows] = []
        self._loader: DataLoader[Any] = DataLoader(
            _Rows(canvases, substitute),
            batch_size=None,
            sampler=_Listed(self._batches),
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pin_memory,
            worker_init_fn=_leave_signals_to_the_loop,
        )

    def __call__(self, batches: list[Rows]) -> Iterator[dict[str, Any]]:
        """Deliver the given batches of rows, in order; raises SslkitError if nothing in the data can be read."""
        self._batches[:] = batches
        for raw in self._loader:
            if "failure" in raw:
                raise SslkitError(raw["failure"])
            yield raw

    def close(self) -> None:
        """End the worker processes."""
        del self._loader


def choose_workers(canvases: Canvases, workers: int | str) -> tuple[int, str]:
    """Return how many worker processes decode, and the reason."""
    if workers != "auto":
        return int(workers), "as given"
    if canvases.index.array is not None:
        return 0, "arrays need no decoding"
    if canvases.complete():
        return 0, "all canvases are cached"
    return min(os.cpu_count() or 1, 8), "one per core, for the first epoch"


def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int, weights: Tensor | None = None) -> list[Rows]:
    """Return the batches of one epoch: a seeded permutation (or draw by weights), the incomplete last batch dropped."""
    generator = torch.Generator().manual_seed((seed << 32) + epoch)
    if weights is None:
        order = torch.randperm(samples, generator=generator)
    else:
        order = torch.multinomial(weights, samples, replacement=True, generator=generator)
    return list(order.numpy()[: samples // batch_size * batch_size].reshape(-1, batch_size))


def ordered_batches(samples: int, batch_size: int) -> list[Rows]:
    """Return all rows in data order, the last batch as short as it is."""
    return [np.arange(start, min(start + batch_size, samples)) for start in range(0, samples, batch_size)]


def _leave_signals_to_the_loop(worker: int) -> None:
    """Ignore what a terminal or a job scheduler sends to workers too: the loop finishes its step and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


class _Rows(Dataset[Any]):
    def __init__(self, canvases: Canvases, substitute: bool) -> None:
        self.canvases, self.substitute = canvases, substitute

    def __getitem__(self, rows: Rows) -> dict[str, Any]:
        images, broken = self.canvases.read(rows)
        reported = [(int(rows[place]), reason) for place, reason in broken.items()]
        if self.substitute and broken:
            replaced = self._replace(images, rows, list(broken))
            if replaced is None:  # told, not raised: an exception would leave a worker as a traceback
                index = self.canvases.index
                return {"failure": f"--data: not one of {len(index)} images in {index.source} can be read"}
            images, rows = replaced
        elif broken:
            good = np.setdiff1d(np.arange(len(rows)), list(broken))
            images, rows = images[good], rows[good]
        return {"image": torch.from_numpy(images), "index": torch.from_numpy(rows), "broken": reported}

    def _replace(self, images: NDArray[np.uint8], rows: Rows, places: list[int]) -> tuple[NDArray[np.uint8], Rows] | None:
        """Put the next readable sample of the data in the place of a broken one: the same one every time."""
        rows, samples = rows.copy(), len(self.canvases.index)
        for place in places:
            for step in range(1, samples):
                row = (rows[place] + step) % samples
                image, broken = self.canvases.read(np.array([row]))
                if not broken:
                    images[place], rows[place] = image[0], row
                    break
            else:
                return None
        return images, rows


class _Listed:
    """Sample what the list holds at the time: the loader keeps its workers while the epochs change."""

    def __init__(self, batches: list[Rows]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Rows]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
