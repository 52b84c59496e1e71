"""An EMA teacher, and the momentum it is updated with."""

import copy
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sslkit.contract.task import Clock


class Teacher(nn.Module):
    """A frozen copy of modules, applied one after the other, in eval mode unless `use_batch_statistics`.

    In train mode the BatchNorm of a key encoder would reveal which samples share a batch, and a contrastive task can cheat
    with that (He et al., 2020, section 3.3); in eval mode no shuffling is needed. Without negatives there is nothing to
    cheat with, and a teacher with `use_batch_statistics` normalizes by the current batch, as BYOL's and DINO's do: averaged
    statistics are not those of averaged weights, and a student can predict the difference.
    """

    def __init__(self, *modules: nn.Module, use_batch_statistics: bool = False) -> None:
        super().__init__()
        self.parts, self.use_batch_statistics = nn.ModuleList(copy.deepcopy(module) for module in modules), use_batch_statistics
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode; with `use_batch_statistics`, BatchNorm alone follows `mode`."""
        super().train(False)
        for module in self.modules():
            if isinstance(module, _BatchNorm):
                module.train(mode and self.use_batch_statistics)
        return self

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return the output of the last part, without a graph."""
        for part in self.parts:
            x = part(x)
        return x

    @torch.no_grad()
    def update(self, *modules: nn.Module, momentum: float) -> None:
        """Update parameters and running statistics as a moving average that keeps `momentum` of the old values.

        Running statistics copied unchanged would belong to other weights than the teacher's, and a BatchNorm in eval mode
        relies on them. Integer buffers, such as counters, are copied. With `use_batch_statistics` the teacher tracks its
        own statistics.
        """
        for part, module in zip(self.parts, modules, strict=True):
            parameters: list[Tensor] = list(part.parameters())
            targets: list[Tensor] = list(module.parameters())
            if parameters:
                torch._foreach_lerp_(parameters, targets, 1 - momentum)
            for teacher_module, student_module in zip(part.modules(), module.modules(), strict=True):
                if self.use_batch_statistics and isinstance(teacher_module, _BatchNorm):
                    continue
                pairs = zip(teacher_module.buffers(recurse=False), student_module.buffers(recurse=False), strict=True)
                for buffer, target in pairs:
                    if buffer.is_floating_point():
                        buffer.lerp_(target, 1 - momentum)
                    else:
                        buffer.copy_(target)


Momentum = Annotated[float, Field(ge=0, lt=1)] | Literal["auto"]


def early_momentum(decay: float, clock: Clock) -> float:
    """Return the current momentum of averaged weights: less than `decay` early on, so that they do not remember the start."""
    step = clock.step - clock.schedule_start
    return min(decay, (1 + step) / (10 + step))


def teacher_momentum(requested: Momentum, clock: Clock, maximum: float, to_one: bool = False) -> float:
    """Return the current momentum of a teacher; `auto` is 1 - 10/steps, between 0.9 and the paper's value, `maximum`.

    Papers' values assume 10⁵ steps: after 300 steps of 0.996 a teacher would still be 30% random. With `to_one` it rises to 1
    on half a cosine wave (Grill et al., 2020, section 3.2).
    """
    momentum = min(max(1 - 10 / clock.steps, 0.9), maximum) if requested == "auto" else requested
    return 1 - (1 - momentum) * (1 + math.cos(math.pi * clock.progress)) / 2 if to_one else momentum


def momentum_reason(requested: Momentum, clock: Clock, maximum: float, to_one: bool = False) -> dict[str, str]:
    """Return the entry of `PretextTask.reasons` for a momentum left on `auto`; empty for any other."""
    if requested != "auto":
        return {}
    initial = teacher_momentum(requested, Clock(steps=clock.steps), maximum)
    return {"momentum": f"{initial:.4f}: 1 - 10/steps, clipped to [0.9, {maximum}]{', and rising to 1' if to_one else ''}"}
