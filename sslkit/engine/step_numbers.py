"""The numbers of a step, on their way from the device, and the state to put back if they are not finite."""

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.task import Batch
from sslkit.engine.sharded_tensors import local_parts
from sslkit.nn import Teacher


@dataclass
class StepNumbers:
    """What a step has measured: loss terms and other values, with what names the culprit if one is not finite."""

    step: int  # counted from 1
    terms: list[str]
    names: list[str]  # the terms first, the gradient norm last
    values: Tensor  # [len(names)]
    batch: Batch
    extra: dict[str, float] = field(default_factory=dict)  # known without the device

    def __post_init__(self) -> None:
        self._copied: torch.cuda.Event | None = None
        if self.values.is_cuda:  # a transfer that nobody waits for yet
            host = torch.empty(self.values.shape, dtype=self.values.dtype, pin_memory=True)
            host.copy_(self.values, non_blocking=True)
            self._copied = torch.cuda.current_stream(self.values.device).record_event()
            self.values = host

    def read(self) -> dict[str, float]:
        """Return the values by name, as soon as they have arrived."""
        if self._copied is not None:
            self._copied.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


class Snapshot:
    """A copy of the state that a step changes beside the weights: buffers and, if `teachers`, theirs."""

    def __init__(self, task: nn.Module, buffers: list[Tensor], teachers: bool) -> None:
        modules = [module for module in task.modules() if isinstance(module, Teacher)] if teachers else []
        tensors = [*buffers, *(parameter for module in modules for parameter in module.parameters())]
        by_type: dict[torch.dtype, list[Tensor]] = defaultdict(list)  # of one type, all are copied by one kernel
        for tensor in local_parts({id(tensor): tensor.detach() for tensor in tensors}.values()):
            by_type[tensor.dtype].append(tensor)
        self._groups = [(alike, [tensor.clone() for tensor in alike]) for alike in by_type.values()]

    @property
    def bytes(self) -> int:
        """Return what the copy takes."""
        return sum(copy.nbytes for _, copies in self._groups for copy in copies)

    def take(self) -> None:
        """Copy the state as it is."""
        for tensors, copies in self._groups:
            torch._foreach_copy_(copies, tensors)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the state back."""
        for tensors, copies in self._groups:
            torch._foreach_copy_(tensors, copies)


def ignore_numbers(step: int, metrics: dict[str, Any]) -> None:
    """Ignore the numbers of a step: the default while nobody logs them."""
