"""A teacher: a copy of networks that follows them slowly and is never optimised."""

import copy
from typing import Literal

import torch
from torch import Tensor, nn

from sslkit.task import Clock


class Teacher(nn.Module):
    """Be a frozen copy of modules, applied one after the other, always in eval mode.

    In train mode the BatchNorm of a key encoder would tell samples of one batch apart by their statistics, and a
    contrastive task can cheat with that (He et al., 2020, section 3.3); in eval mode there is nothing to shuffle.
    """

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(copy.deepcopy(module) for module in modules)
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> "Teacher":
        """Stay in eval mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        """Return what the last part says, without a graph."""
        for part in self.parts:
            x = part(x)
        return x

    @torch.no_grad()
    def follow(self, *modules: nn.Module, momentum: float) -> None:
        """Keep `momentum` of each parameter and take the rest from the modules; buffers are copied."""
        for mine, theirs in zip(self.parts, modules, strict=True):
            old: list[Tensor] = list(mine.parameters())
            new: list[Tensor] = list(theirs.parameters())
            if old:
                torch._foreach_lerp_(old, new, 1 - momentum)
            for buffer, source in zip(mine.buffers(), theirs.buffers(), strict=True):
                buffer.copy_(source)


def teacher_momentum(asked: float | Literal["auto"], clock: Clock, largest: float) -> float:
    """Return the momentum of a teacher; `auto` is 1 - 10/steps, between 0.9 and the paper's `largest`.

    Papers' values assume 10⁵ steps: after 300 steps of 0.996 a teacher would still be 30% random.
    """
    return min(max(1 - 10 / clock.steps, 0.9), largest) if asked == "auto" else asked
