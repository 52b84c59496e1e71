"""The mean of gradients over processes, exchanged in buckets while the backward pass is still running."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sslkit.contract.errors import RunFailedError
from sslkit.engine.parallel import World, communicating

FIRST_BYTES, BYTES = 2**20, 25 * 2**20  # of a bucket; the first is small, so that the exchange begins early


@dataclass
class _Bucket:
    """Gradients that travel in one message: parts of `flat`, which the parameters have as their `grad`."""

    flat: Tensor
    views: dict[int, Tensor]  # by place of the parameter
    waiting: set[int] = field(default_factory=set)  # places of the parameters whose gradient is not complete yet
    work: dist.Work | None = None


class GradientBuckets:
    """Replace gradients by their mean over processes, each bucket as soon as the backward pass has completed it.

    A parameter may receive several gradients in a step: from the loss, and from each micro-batch. The first step counts
    them and notes in which order parameters are complete; the first process's order makes the buckets, and a bucket starts
    at the last gradient counted for its members. A step whose counts differ is exchanged correctly and makes the next step
    count again, and so does a new `plan`: the number of micro-batches, or whatever else may change the counts.
    """

    def __init__(self, module: nn.Module, world: World, bytes_per_bucket: tuple[int, int] = (FIRST_BYTES, BYTES)) -> None:
        self._world, self._bytes = world, bytes_per_bucket
        named = [(name, p) for name, p in module.named_parameters() if not isinstance(p, DTensor)]  # FSDP averages those
        self._parameters = [parameter for _, parameter in named]
        self._places: dict[Tensor, int] = {parameter: place for place, parameter in enumerate(self._parameters)}
        self._names = [name for name, _ in named]
        self._plan: tuple[int, ...] | None = None  # what the expected counts belong to
        self._expected: list[int] = []
        self._buckets: list[_Bucket] = []  # in the order in which they start
        self._bucket_of: dict[int, _Bucket] = {}
        self._begin()

    @property
    def started(self) -> int:
        """Return how many buckets of this step are on their way."""
        return self._started

    @contextmanager
    def exchange(self, *plan: int) -> Iterator[None]:
        """Exchange the gradients of the backward passes inside; at the end every `grad` is the mean over processes.

        Raises RunFailedError if a gradient arrives after its bucket has started, or if the processes compute gradients of
        different parameters.
        """
        if plan != self._plan:
            self._forget()
        self._begin()
        handles = [
            parameter.register_post_accumulate_grad_hook(self._accumulated)
            for parameter in self._parameters
            if parameter.requires_grad
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        if not self._buckets:
            self._learn()
        self._finish(plan)

    def _begin(self) -> None:
        self._counts, self._completed_at = [0] * len(self._parameters), [0] * len(self._parameters)
        self._received = self._started = 0
        for bucket in self._buckets:
            bucket.flat.zero_()
            bucket.waiting, bucket.work = set(bucket.views), None
            for place, view in bucket.views.items():
                self._parameters[place].grad = view

    def _accumulated(self, parameter: Tensor) -> None:
        """Note that a parameter has received a gradient; start the buckets that are complete now."""
        place = self._places[parameter]
        self._received += 1
        self._counts[place] += 1
        self._completed_at[place] = self._received
        bucket = self._bucket_of.get(place)
        if bucket is None:
            return
        if bucket.work is not None:
            raise RunFailedError(
                f"{self._names[place]} received {self._counts[place]} gradients in a step instead of {self._expected[place]}, "
                "the last one after its exchange had started",
                "a task may change which gradients it computes at the beginning of an epoch only",
            )
        if self._counts[place] == self._expected[place]:
            bucket.waiting.discard(place)
            while self._started < len(self._buckets) and not self._buckets[self._started].waiting:
                self._start_next()

    def _start_next(self) -> None:
        bucket = self._buckets[self._started]
        operation = dist.ReduceOp.AVG if _averages(bucket.flat) else dist.ReduceOp.SUM
        with communicating():
            bucket.work = dist.all_reduce(bucket.flat, op=operation, async_op=True)
        self._started += 1

    def _finish(self, plan: tuple[int, ...]) -> None:
        """Start what has not started, and wait for everything."""
        while self._started < len(self._buckets):
            self._start_next()
        unexpected = [
            parameter.grad
            for place, parameter in enumerate(self._parameters)
            if parameter.grad is not None and place not in self._bucket_of
        ]
        self._world.average(unexpected)
        for bucket in self._buckets:
            assert bucket.work is not None
            with communicating():
                bucket.work.wait()
            if not _averages(bucket.flat):
                bucket.flat /= self._world.size
        for place in self._bucket_of:
            if self._counts[place] == 0:  # an optimizer must not take zeros for a gradient
                self._parameters[place].grad = None
        self._plan = plan
        if self._counts != self._expected:
            self._forget()

    def _forget(self) -> None:
        self._plan, self._expected, self._buckets, self._bucket_of = None, [], [], {}

    def _learn(self) -> None:
        """Make buckets of this step's gradients, in the order in which the first process completed them."""
        mine = torch.tensor([self._counts, self._completed_at])
        first = mine.clone()
        self._world.broadcast([first])
        if self._world.any_rank(not torch.equal(mine[0], first[0])):
            raise RunFailedError("the processes computed gradients of different parameters", "see docs/writing-a-task.md")
        self._expected = self._counts
        order = [place for place in first[1].argsort().tolist() if self._counts[place]]
        for places in self._groups(order):
            parameters = [self._parameters[place] for place in places]
            flat = torch.empty(sum(p.numel() for p in parameters), dtype=parameters[0].dtype, device=parameters[0].device)
            bucket = _Bucket(flat, {}, set())
            parts = flat.split([parameter.numel() for parameter in parameters])
            for place, parameter, part in zip(places, parameters, parts, strict=True):
                # In the memory format of the weights, as fused optimizers want it.
                view = part.as_strided(parameter.shape, torch.empty_like(parameter, device="meta").stride())
                assert parameter.grad is not None
                parameter.grad = view.copy_(parameter.grad)
                bucket.views[place] = view
                self._bucket_of[place] = bucket
            self._buckets.append(bucket)

    def _groups(self, order: list[int]) -> Iterator[list[int]]:
        """Group consecutive parameters of one dtype and device up to a size limit."""
        group: list[int] = []
        size, limit = 0, self._bytes[0]
        for place in order:
            parameter, first = self._parameters[place], self._parameters[group[0] if group else place]
            alike = (parameter.dtype, parameter.device) == (first.dtype, first.device)
            if group and (size + parameter.nbytes > limit or not alike):
                yield group
                group, size, limit = [], 0, self._bytes[1]
            group.append(place)
            size += parameter.nbytes
        if group:
            yield group


def _averages(flat: Tensor) -> bool:
    """Return whether the backend divides by the number of processes itself: NCCL does, gloo does not."""
    return flat.is_cuda and "cuda:nccl" in dist.get_backend_config()
