"""The processes of one job: who this one is, and the few things they tell each other.

`torchrun` starts the processes and says so in the environment. Everything here does nothing in a job of one process.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from sslkit.contract.errors import RunFailedError, SslkitError

T = TypeVar("T")


_BUCKET = 2**24  # elements that travel together


@dataclass(frozen=True)
class World:
    """Know this process's place among those of the job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Tell whether this is the process that writes and speaks."""
        return self.rank == 0

    def own(self, rows: int) -> slice:
        """Return this process's equal, contiguous share of `rows` (rounded up: the last share may be shorter)."""
        share = -(-rows // self.size)
        return slice(min(self.rank * share, rows), min((self.rank + 1) * share, rows))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in order; each has equally many."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with _talking():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def gather_uneven(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in order, however many each has."""
        if self.size == 1:
            return rows
        counts = self.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        if max(counts) == 0:
            return rows
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        return torch.cat([part[:count] for part, count in zip(self.gather(padded).split(max(counts)), counts, strict=True)])

    def gather_lists(self, items: list[T]) -> list[T]:
        """Return the items of all processes, in order."""
        if self.size == 1:
            return items
        lists: list[Any] = [None] * self.size
        with _talking():
            dist.all_gather_object(lists, items)
        return [item for one in lists for item in one]

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over processes."""
        if self.size == 1:
            return value
        value = value.clone()
        with _talking():
            dist.all_reduce(value)
        return value

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Put the mean over processes in the place of each tensor, many of them in one message."""

        def mean(flat: Tensor) -> None:
            dist.all_reduce(flat)
            flat /= self.size

        if self.size > 1:
            _exchange(tensors, mean)

    def copy_from_first(self, tensors: Iterable[Tensor]) -> None:
        """Put the first process's values into each tensor."""
        if self.size > 1:
            _exchange(tensors, lambda flat: dist.broadcast(flat, src=0))

    def any(self, flag: bool) -> bool:
        """Tell whether a flag is set in any process, so that all decide alike."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))
        with _talking():
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def from_first(self, value: float) -> float:
        """Return the first process's number."""
        number = torch.tensor(value, dtype=torch.float64)
        self.copy_from_first([number])
        return number.item()

    def meet(self) -> None:
        """Wait until every process is here."""
        self.any(False)


ALONE = World()


class GatheredBatch(Mapping[str, Any]):
    """Be a batch with the rows of all processes; a tensor is gathered when it is first read.

    A loss that reads two vectors of a batch with large images moves two vectors. All processes run the same code, so
    they read, and gather, in the same order.
    """

    def __init__(self, batch: Mapping[str, Any], world: World) -> None:
        self._own, self._world = batch, world
        self._gathered: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._gathered:
            value = self._own[name]
            self._gathered[name] = self._world.gather(value) if isinstance(value, Tensor) else value
        return self._gathered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._own)

    def __len__(self) -> int:
        return len(self._own)


@contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun started, if it did, and leave them at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise SslkitError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} is not set",
            "start with torchrun, or unset WORLD_SIZE",
        )
    world = World(int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_RANK"]))
    on_gpu = device != "cpu" and torch.cuda.is_available()
    if on_gpu:
        if world.local_rank >= torch.cuda.device_count():
            raise SslkitError(
                f"process {world.local_rank} of this machine has no GPU (found: {torch.cuda.device_count()})",
                "lower torchrun's --nproc-per-node, or use --device cpu",
            )
        torch.cuda.set_device(world.local_rank)
    try:
        store, rank, size = next(dist.rendezvous("env://"))  # type: ignore[attr-defined]
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # Of processes that torchrun starts again: those before wrote into the same store where they could be found. (Of
            # several machines each counts its own restarts, so that there the count is no common name.)
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        raise RunFailedError(f"process {world.rank} cannot join the others: {str(error).partition(chr(10))[0]}") from error
    try:
        yield world
    finally:
        dist.destroy_process_group()


@contextmanager
def _talking() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises, of several kinds, when another process is gone
        raise RunFailedError(
            f"lost another process of this job: {str(error).partition(chr(10))[0]}",
            "its own message says why; --resume goes on from the last checkpoint",
        ) from error


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group tensors of one type and device, a limited size at a time; their order is kept, and so the same everywhere."""
    bucket: list[Tensor] = []
    size = 0
    for tensor in tensors:
        if bucket and ((tensor.dtype, tensor.device) != (bucket[0].dtype, bucket[0].device) or size + tensor.numel() > _BUCKET):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.numel()
    if bucket:
        yield bucket


def _exchange(tensors: Iterable[Tensor], change: Callable[[Tensor], object]) -> None:
    """Change tensors in place by what processes tell each other, many of them in one message."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
        with _talking():
            change(flat)
        with torch.no_grad():
            for tensor, piece in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(piece.view(tensor.shape))
