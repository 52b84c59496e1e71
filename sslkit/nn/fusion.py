"""Functions of tensors that the engine may compile, as it does on CUDA."""

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from torch import Tensor

Fuse = Callable[[Callable[..., Tensor]], Callable[..., Tensor]]


_fuse: ContextVar[Fuse | None] = ContextVar("fuse", default=None)


def fusible(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Let the engine compile a function of tensors and numbers that draws nothing at random: many kernels become a few.

    Draw before, so that the seed gives the same values either way, and take constants as arguments.
    """

    @functools.wraps(function)
    def call(*arguments: Any, **settings: Any) -> Tensor:
        fuse = _fuse.get()
        return (function if fuse is None else fuse(function))(*arguments, **settings)

    return call


@contextmanager
def fusing(fuse: Fuse | None) -> Iterator[None]:
    """Call fusible functions through `fuse` inside."""
    before = _fuse.set(fuse)
    try:
        yield
    finally:
        _fuse.reset(before)
