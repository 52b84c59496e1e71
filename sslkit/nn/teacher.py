"""A teacher: a copy of networks that follows them slowly and is never optimized."""

import copy
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.contract.task import Clock


class Teacher(nn.Module):
    """Be a frozen copy of modules, applied one after the other, in eval mode unless it `use_batch_statistics`.

    In train mode the BatchNorm of a key encoder would tell samples of one batch apart by their statistics, and a
    contrastive task can cheat with that (He et al., 2020, section 3.3); in eval mode there is nothing to shuffle. Without
    negatives there is nothing to cheat with, and a teacher that `use_batch_statistics` normalizes by what it sees, as BYOL's and
    DINO's do: averaged statistics are not those of averaged weights, and a student can predict the difference.
    """

    def __init__(self, *modules: nn.Module, use_batch_statistics: bool = False) -> None:
        super().__init__()
        self.parts, self.use_batch_statistics = nn.ModuleList(copy.deepcopy(module) for module in modules), use_batch_statistics
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode, or let BatchNorm, and nothing else, train along."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode and self.use_batch_statistics)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return what the last part says, without a graph."""
        for part in self.parts:
            x = part(x)
        return x

    @torch.no_grad()
    def update(self, *modules: nn.Module, momentum: float) -> None:
        """Keep `momentum` of each parameter and each running statistic, and take the rest from the modules.

        Statistics copied as they are would be those of other weights than the teacher's, and a BatchNorm in eval mode believes
        them. Whole numbers, such as counts, are copied. A teacher that `use_batch_statistics` has statistics of its own.
        """
        for mine, theirs in zip(self.parts, modules, strict=True):
            old: list[Tensor] = list(mine.parameters())
            new: list[Tensor] = list(theirs.parameters())
            if old:
                torch._foreach_lerp_(old, new, 1 - momentum)
            for own, other in zip(mine.modules(), theirs.modules(), strict=True):
                if self.use_batch_statistics and isinstance(own, _BatchNorm):
                    continue
                for buffer, source in zip(own.buffers(recurse=False), other.buffers(recurse=False), strict=True):
                    if buffer.is_floating_point():
                        buffer.lerp_(source, 1 - momentum)
                    else:
                        buffer.copy_(source)


Momentum = Annotated[float, Field(ge=0, lt=1)] | Literal["auto"]


def teacher_momentum(asked: Momentum, clock: Clock, largest: float, to_one: bool = False) -> float:
    """Return the momentum of a teacher; `auto` is 1 - 10/steps, between 0.9 and the paper's `largest`.

    Papers' values assume 10⁵ steps: after 300 steps of 0.996 a teacher would still be 30% random. If it `to_one`, it comes to 1
    on half a cosine wave (Grill et al., 2020, section 3.2).
    """
    momentum = min(max(1 - 10 / clock.steps, 0.9), largest) if asked == "auto" else asked
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * clock.progress)) / 2 if to_one else momentum


def momentum_reason(asked: Momentum, clock: Clock, largest: float, to_one: bool = False) -> dict[str, str]:
    """Return what a task's `reasons` say of a momentum that was left on `auto`."""
    if asked != "auto":
        return {}
    first = teacher_momentum(asked, Clock(steps=clock.steps), largest)
    return {"momentum": f"{first:.4f}{', rising to 1' if to_one else ''}: 1 - 10/steps, from 0.9 to {largest}"}
