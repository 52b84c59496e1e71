"""Batches of samples, in an order that depends only on seed and epoch."""

import atexit
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain
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
    as_tensor,
    keep_worker_deaths_silent,
    leaving,
    rows_of_pieces,
    start_worker,
    worker_context,
)

_Request = tuple[Rows, ReadSeed | None]


_INTERVAL, _PATIENCE = 1, 300  # seconds until torch reports that no batch came; after so many reports the run fails


_FEWER = "fewer workers need less memory; --workers 0 reads in this process"


class WorkerFailedError(RunFailedError):
    """Report that a loader worker died, or delivers nothing."""


class Loader:
    """Deliver batches: the source's arrays as tensors, `index` int64 `[B]`, and `broken`: [(row, reason)].

    Labels that were revealed are `label`, int64 `[B]`. Workers read a batch whole, or in pieces if it is large.

    Once `stopped` returns true, no batch is waited for any longer: the epoch ends early.
    """

    def __init__(
        self,
        source: Source,
        workers: int,
        substitute: bool,
        pin_memory: bool = False,
        stopped: Callable[[], bool] = lambda: False,
    ) -> None:
        self._workers, self._pin_memory, self._stopped = workers, pin_memory, stopped
        self._rows_of_pieces = rows_of_pieces(source, workers) if workers else None
        self._requests = list[_Request]()
        with allow_many_workers():
            self._loader: DataLoader[Any] = DataLoader(
                _Rows(source, substitute),
                batch_size=None,
                sampler=_RequestSampler(self._requests),
                num_workers=workers,
                persistent_workers=workers > 0,
                timeout=_INTERVAL if workers else 0,
                multiprocessing_context=worker_context() if workers else None,
                worker_init_fn=partial(start_worker, leaving),
            )

    def __call__(self, batches: list[Rows], read_seed: ReadSeed | None = None) -> Iterator[dict[str, Any]]:
        """Deliver batches of rows in order; random choices of the source, such as a window, are seeded by `read_seed`.

        Raises SslkitError if no sample can be read, and WorkerFailedError if a worker died or hangs.
        """
        requests = [[(piece, read_seed) for piece in self._split(rows)] for rows in batches]
        self._requests[:] = chain.from_iterable(requests)
        with allow_many_workers(), keep_worker_deaths_silent():
            iterator = iter(self._loader)
        for pieces in requests:
            raws = []
            for _ in pieces:
                raw = self._next(iterator)
                if raw is None:
                    return
                if "failure" in raw:
                    raise SslkitError(raw["failure"], flag="data")
                raws.append(raw)
            yield _join(raws, self._pin_memory)

    def _split(self, rows: Rows) -> list[Rows]:
        """Return the parts of a batch that workers read one by one."""
        if self._rows_of_pieces is None or len(rows) <= self._rows_of_pieces:
            return [rows]
        return np.array_split(rows, -(-len(rows) // self._rows_of_pieces))

    def _next(self, iterator: Iterator[dict[str, Any]]) -> dict[str, Any] | None:
        """Return the next batch, None after the last one or once the run is to stop."""
        for _ in range(_PATIENCE):
            try:
                return next(iterator, None)
            except (RuntimeError, OSError, EOFError) as error:
                message = str(error).partition("\n")[0]
                if message.startswith("DataLoader timed out"):  # the workers are alive: it may be the disk
                    if self._stopped():
                        return None
                    continue
                # Torch names its workers; what is no RuntimeError is a broken connection to one, or was caught in one.
                named = message.startswith("DataLoader worker (")
                died = named or not (isinstance(error, RuntimeError) or message.startswith("Caught "))
                if self._workers == 0 or not died:
                    raise
                reason = f"one of {self._workers} died: {message or type(error).__name__}"
                raise WorkerFailedError(reason, _FEWER, flag="workers") from error
        raise WorkerFailedError(f"no batch came in {_INTERVAL * _PATIENCE} seconds", _FEWER, flag="workers")

    def close(self) -> None:
        """End the worker processes."""
        del self._loader


def epoch_batches(samples: int, batch_size: int, seed: int, epoch: int, weights: Tensor | None = None) -> list[Rows]:
    """Return the batches of one epoch: a seeded permutation, or a sample by weights, without the incomplete last batch."""
    generator = torch.Generator().manual_seed((seed << 32) + epoch)
    if weights is None:
        order = torch.randperm(samples, generator=generator)
    else:
        order = torch.multinomial(weights, samples, replacement=True, generator=generator)
    return list(order.numpy()[: samples // batch_size * batch_size].reshape(-1, batch_size))


def mixed_batches(labeled: NDArray[np.bool_], count: int, batch_size: int, seed: int, epoch: int) -> list[Rows]:
    """Return the batches of one epoch with `count` labeled samples in each.

    `labeled` is `[N]`. Of labeled samples and of others, all come once before any comes again.
    """
    generator = torch.Generator().manual_seed((seed << 32) + epoch)
    steps = len(labeled) // batch_size
    parts = []
    for rows, needed in ((np.flatnonzero(labeled), count), (np.flatnonzero(~labeled), batch_size - count)):
        passes = -(-steps * needed // len(rows))
        order = [torch.randperm(len(rows), generator=generator) for _ in range(passes)]
        if order:
            parts.append(rows[torch.cat(order)[: steps * needed].numpy()].reshape(steps, needed))
    batches = np.concatenate(parts, axis=1)
    return [batch[torch.randperm(batch_size, generator=generator).numpy()] for batch in batches]


def ordered_batches(samples: int, batch_size: int) -> list[Rows]:
    """Return batches of all rows in data order; the last one may be shorter."""
    return [np.arange(start, min(start + batch_size, samples)) for start in range(0, samples, batch_size)]


atexit.register(leaving.set)  # before multiprocessing, registered earlier, sends signals and waits


def _join(raws: list[dict[str, Any]], pin_memory: bool) -> dict[str, Any]:
    """Return the batch of pieces that were read in order."""
    if len(raws) == 1 and not pin_memory:
        return raws[0]
    batch: dict[str, Any] = {}
    for name, first in raws[0].items():
        values = [raw[name] for raw in raws]
        if isinstance(first, Tensor):
            shape = (sum(map(len, values)), *first.shape[1:])
            batch[name] = torch.cat(values, out=torch.empty(shape, dtype=first.dtype, pin_memory=pin_memory))
        else:
            batch[name] = list(chain.from_iterable(values))
    return batch


class _Rows(Dataset[Any]):
    def __init__(self, source: Source, substitute: bool) -> None:
        self.source, self.substitute = source, substitute

    def __getitem__(self, request: _Request) -> dict[str, Any]:
        rows, read_seed = request
        arrays, broken = self.source.read(rows, read_seed)
        reported = [(int(rows[place]), reason) for place, reason in broken.items()]
        if self.substitute and broken:
            replaced = self._replace(arrays, rows, list(broken), read_seed)
            if replaced is None:  # returned, not raised: an exception would leave a worker as a traceback
                source = self.source
                return {"failure": f"none of the {source.info.samples} {source.noun} in {source.location} can be read"}
            rows = replaced
        elif broken:
            good = np.setdiff1d(np.arange(len(rows)), list(broken))
            arrays, rows = {name: array[good] for name, array in arrays.items()}, rows[good]
        tensors = {name: as_tensor(array) for name, array in arrays.items()}
        if self.source.labels is not None:
            tensors["label"] = torch.from_numpy(self.source.labels.values[rows])
        return {**tensors, "index": torch.from_numpy(rows), "broken": reported}

    def _replace(
        self, arrays: dict[str, NDArray[Any]], rows: Rows, places: list[int], read_seed: ReadSeed | None
    ) -> Rows | None:
        """Replace each unreadable sample by the next readable one in the data; return the rows, or None if there is none."""
        rows, samples = rows.copy(), self.source.info.samples
        for place in places:
            for step in range(1, samples):
                row = (rows[place] + step) % samples
                replacement, broken = self.source.read(np.array([row]), read_seed)
                if not broken:
                    for name, array in arrays.items():
                        array[place] = replacement[name][0]
                    rows[place] = row
                    break
            else:
                return None
        return rows


class _RequestSampler:
    """Sample what the list holds at the time: the loader keeps its workers from one epoch to the next."""

    def __init__(self, requests: list[_Request]) -> None:
        self.requests = requests

    def __iter__(self) -> Iterator[_Request]:
        return iter(self.requests)

    def __len__(self) -> int:
        return len(self.requests)
