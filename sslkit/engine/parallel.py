"""The processes of one job: the rank of this one, and the few collectives they need.

torchrun, srun or `--devices` starts the processes (`sslkit.processes`). With one process everything here is a no-op.
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
from sslkit.processes import Place, find_place

T = TypeVar("T")


_BUCKET = 2**24  # elements per message
LOST = "lost another process of this job"


@dataclass(frozen=True)
class World:
    """Place of this process among those of the job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Return whether this is the process that writes files and prints."""
        return self.rank == 0

    def share(self, rows: int) -> slice:
        """Return this process's equal, contiguous share of `rows` (rounded up: the last share may be shorter)."""
        length = -(-rows // self.size)
        return slice(min(self.rank * length, rows), min((self.rank + 1) * length, rows))

    def gather(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in rank order; every process has the same number of rows."""
        if self.size == 1:
            return rows
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(self.size)]
        with communicating():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    def gather_uneven(self, rows: Tensor) -> Tensor:
        """Return the rows of all processes in rank order; their numbers may differ."""
        if self.size == 1:
            return rows
        counts = self.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
        if max(counts) == 0:
            return rows
        padded = rows.new_zeros((max(counts), *rows.shape[1:]))
        padded[: len(rows)] = rows
        return torch.cat([part[:count] for part, count in zip(self.gather(padded).split(max(counts)), counts, strict=True)])

    def gather_lists(self, items: list[T]) -> list[T]:
        """Return the items of all processes in rank order."""
        if self.size == 1:
            return items
        lists: list[Any] = [None] * self.size
        with communicating():
            dist.all_gather_object(lists, items)
        return [item for part in lists for item in part]

    def total(self, value: Tensor) -> Tensor:
        """Return the sum over processes."""
        if self.size == 1:
            return value
        value = value.clone()
        with communicating():
            dist.all_reduce(value)
        return value

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its mean over processes, in place, many tensors per message."""

        def mean(flat: Tensor) -> None:
            dist.all_reduce(flat)
            flat /= self.size

        if self.size > 1:
            _exchange(tensors, mean)

    def broadcast(self, tensors: Iterable[Tensor]) -> None:
        """Overwrite each tensor with the first process's values."""
        if self.size > 1:
            _exchange(tensors, lambda flat: dist.broadcast(flat, src=0))

    def any_rank(self, flag: bool) -> bool:
        """Return whether the flag is set in any process, so that all take the same decision."""
        if self.size == 1:
            return flag
        value = torch.tensor(int(flag))
        with communicating():
            dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value)

    def from_first(self, value: float) -> float:
        """Return the first process's number."""
        number = torch.tensor(value, dtype=torch.float64)
        self.broadcast([number])
        return number.item()

    def barrier(self) -> None:
        """Wait for every process to get here."""
        self.any_rank(False)


ALONE = World()


class GatheredBatch(Mapping[str, Any]):
    """A batch with the rows of all processes; a tensor is gathered when it is first read.

    A loss that reads two vectors of a batch with large images transfers two vectors. All processes run the same code, so
    they read, and gather, in the same order. Where `names` is not empty, only these entries are gathered; the others
    keep the rows of this process.
    """

    def __init__(self, batch: Mapping[str, Any], world: World, names: tuple[str, ...] = ()) -> None:
        self._local, self._world, self._names = batch, world, names
        self._gathered: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._gathered:
            value = self._local[name]
            gathers = isinstance(value, Tensor) and (not self._names or name in self._names)
            self._gathered[name] = self._world.gather(value) if gathers else value
        return self._gathered[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._local)

    def __len__(self) -> int:
        return len(self._local)


@contextmanager
def process_group(device: str = "auto") -> Iterator[World]:
    """Join the processes that torchrun, srun or `--devices` started, if any, and leave them at the end."""
    place = find_place(os.environ)
    if place.size == 1:
        yield ALONE
        return
    missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing and place.launcher != "srun":
        raise SslkitError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} and {', '.join(missing)} is not set",
            "start the job with torchrun, or unset WORLD_SIZE",
        )
    on_gpu = device != "cpu" and torch.cuda.is_available()
    world = World(place.rank, place.size, _choose_gpu(place) if on_gpu else place.local_rank)
    if on_gpu:
        torch.cuda.set_device(world.local_rank)
    try:
        store, rank, size = next(dist.rendezvous(place.rendezvous))  # type: ignore[attr-defined]
        if os.environ.get("GROUP_WORLD_SIZE") == "1":
            # After a restart by torchrun: the earlier processes left their addresses in the same store. (With several
            # machines each counts its own restarts, so the count is not a common name there.)
            store = dist.PrefixStore(f"start {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)  # type: ignore[attr-defined]
        dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpu else "gloo", store=store, rank=rank, world_size=size)
    except RuntimeError as error:
        raise RunFailedError(
            f"process {world.rank} cannot join the process group: {str(error).partition(chr(10))[0]}"
        ) from error
    try:
        yield world
    finally:
        dist.destroy_process_group()


def _choose_gpu(place: Place) -> int:
    """Return the number of this process's GPU; raises SslkitError if there is none left for it."""
    gpus = torch.cuda.device_count()
    if place.launcher == "srun" and gpus == 1:
        return 0  # with --gpus-per-task=1 each task sees only a GPU of its own
    if place.local_rank >= gpus:
        tasks = "--ntasks-per-node of srun" if place.launcher == "srun" else "--nproc-per-node of torchrun"
        raise SslkitError(
            f"process {place.local_rank} has no GPU: this machine has {gpus}", f"lower {tasks}, or use --device cpu"
        )
    return place.local_rank


@contextmanager
def communicating() -> Iterator[None]:
    """Turn the error that another process is gone, inside, into RunFailedError."""
    try:
        yield
    except RuntimeError as error:  # subclasses of it are what torch raises when another process is gone
        raise RunFailedError(
            f"{LOST}: {str(error).partition(chr(10))[0]}",
            "see the message of that process; --resume continues from the last checkpoint",
        ) from error


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Group consecutive tensors of one dtype and device up to a size limit; the order is the same in every process."""
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
    """Flatten tensors into buckets, let a collective change each bucket, and copy the result back."""
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.detach().reshape(-1) for tensor in bucket])
        with communicating():
            change(flat)
        with torch.no_grad():
            for tensor, part in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
                tensor.copy_(part.view(tensor.shape))
