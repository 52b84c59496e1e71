"""Batches of samples, in an order that depends on nothing but seed and epoch."""

import atexit
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sslkit.contract.errors import RunFailedError, SslkitError
from sslkit.contract.source import ReadSeed, Rows, Source
from sslkit.data.worker_process import (
    allow_many_workers,
    ignore_stop_signals,
    keep_worker_deaths_silent,
    leaving,
    worker_context,
)

_Asked = tuple[Rows, ReadSeed | None]


_INTERVAL, _PATIENCE = 60, 5  # seconds between looks at workers that deliver nothing; so many, and they are given up


class WorkerFailedError(RunFailedError):
    """Report that a worker process died or hangs."""


class Loader:
    """Deliver batches: the source's arrays as tensors, `index` int64 `[B]`, and `broken`: [(row, reason)]."""

    def __init__(self, source: Source, workers: int, substitute: bool, pin_memory: bool = False) -> None:
        self._workers, self._batches = workers, list[_Asked]()
        with allow_many_workers():
            self._loader: DataLoader[Any] = DataLoader(
                _Rows(source, substitute),
                batch_size=None,
                sampler=_Listed(self._batches),
                num_workers=workers,
                persistent_workers=workers > 0,
                timeout=_INTERVAL if workers else 0,
                pin_memory=pin_memory,
                multiprocessing_context=worker_context() if workers else None,
                worker_init_fn=partial(ignore_stop_signals, leaving),
            )

    def __call__(self, batches: list[Rows], draw: ReadSeed | None = None) -> Iterator[dict[str, Any]]:
        """Deliver the given batches of rows, in order; what is random in reading them comes from `draw`.

        Raises SslkitError if nothing in the data can be read, and WorkerFailedError if a worker died or hangs.
        """
        self._batches[:] = [(rows, draw) for rows in batches]
        with allow_many_workers(), keep_worker_deaths_silent():
            arriving = iter(self._loader)
        while (raw := self._next(arriving, _PATIENCE)) is not None:
            if "failure" in raw:
                raise SslkitError(raw["failure"])
            yield raw

    def _next(self, arriving: Iterator[dict[str, Any]], looks: int) -> dict[str, Any] | None:
        """Return the next batch, None after the last one."""
        try:
            return next(arriving, None)
        except (RuntimeError, OSError, EOFError) as error:
            said = str(error).partition("\n")[0]
            slow = said.startswith("DataLoader timed out")
            if slow and looks > 1:  # the workers are alive: it may be the disk
                return self._next(arriving, looks - 1)
            # Torch's watch speaks of its workers; what is no RuntimeError is a connection to one, or was caught in one.
            died = said.startswith("DataLoader worker (") or not (isinstance(error, RuntimeError) or said.startswith("Caught "))
            if self._workers == 0 or not (slow or died):
                raise
            waited = f"no batch came in {_INTERVAL * _PATIENCE} seconds"
            told = waited if slow else f"a worker died: {said or type(error).__name__}"
            hint = "fewer workers need less memory, and less of /dev/shm; --workers 0 reads in this process"
            raise WorkerFailedError(f"{self._workers}: {told}", hint, flag="workers") from error

    def close(self) -> None:
        """End the worker processes."""
        del self._loader


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


atexit.register(leaving.set)  # before multiprocessing, registered earlier, sends signals and waits


class _Rows(Dataset[Any]):
    def __init__(self, source: Source, substitute: bool) -> None:
        self.source, self.substitute = source, substitute

    def __getitem__(self, asked: _Asked) -> dict[str, Any]:
        rows, draw = asked
        arrays, broken = self.source.read(rows, draw)
        reported = [(int(rows[place]), reason) for place, reason in broken.items()]
        if self.substitute and broken:
            replaced = self._replace(arrays, rows, list(broken), draw)
            if replaced is None:  # told, not raised: an exception would leave a worker as a traceback
                source = self.source
                return {"failure": f"--data: not one of {source.info.samples} {source.noun} in {source.location} can be read"}
            rows = replaced
        elif broken:
            good = np.setdiff1d(np.arange(len(rows)), list(broken))
            arrays, rows = {name: array[good] for name, array in arrays.items()}, rows[good]
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return {**tensors, "index": torch.from_numpy(rows), "broken": reported}

    def _replace(self, arrays: dict[str, NDArray[Any]], rows: Rows, places: list[int], draw: ReadSeed | None) -> Rows | None:
        """Replace each unreadable sample by the next readable one, always the same; return the rows."""
        rows, samples = rows.copy(), self.source.info.samples
        for place in places:
            for step in range(1, samples):
                row = (rows[place] + step) % samples
                found, broken = self.source.read(np.array([row]), draw)
                if not broken:
                    for name, array in arrays.items():
                        array[place] = found[name][0]
                    rows[place] = row
                    break
            else:
                return None
        return rows


class _Listed:
    """Sample what the list holds at the time: the loader keeps its workers while the epochs change."""

    def __init__(self, batches: list[_Asked]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[_Asked]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)
