"""torch.compile of the parts of a task's `transform` that are functions of tensors."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import config as dynamo_config

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.engine.precision import Machine, compilation_failure


def build_fusion(machine: Machine) -> "Fusion | None":
    """Return what compiles fusible functions; None where nothing is compiled, and on devices other than CUDA.

    A CPU gains nothing: there `transform` has other formulas, which make use of values.
    """
    return Fusion(machine.compile_required) if machine.compile and machine.device.type == "cuda" else None


class Fusion:
    """Compile fusible functions, each as one graph for every kind of views, with fixed sizes.

    If a compilation fails, `--compile auto` falls back to eager execution with a message, and `--compile on` raises
    SslkitError.
    """

    def __init__(self, required: bool = False) -> None:
        self.required = required
        self.failed: set[Callable[..., Tensor]] = set()
        self._compiled: dict[Callable[..., Tensor], Callable[..., Tensor]] = {}

    def __call__(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        """Return the compiled form of a function."""
        if function in self.failed:
            return function
        if function not in self._compiled:
            self._compiled[function] = self._compile(function)
        return self._compiled[function]

    def _compile(self, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        compiled = torch.compile(function, fullgraph=True, dynamic=False)

        def call(*arguments: Any, **settings: Any) -> Tensor:
            try:
                with dynamo_config.patch(recompile_limit=32):  # a few sizes, strengths and, at the end, batches
                    return compiled(*arguments, **settings)
            except RuntimeError as error:
                reason = compilation_failure(error)
                if reason is None:
                    raise
                self._fall_back(function, error, reason)
                return function(*arguments, **settings)

        return call

    def _fall_back(self, function: Callable[..., Tensor], error: RuntimeError, reason: str) -> None:
        name = function.__name__.strip("_")
        if self.required:
            raise SslkitError(
                f"on, but {name} of transform cannot be compiled: {reason}", "use --compile off", flag="compile"
            ) from error
        say(f"  {'compile':<14} off for {name} of transform: it cannot be compiled ({reason}); running eagerly")
        self.failed.add(function)
