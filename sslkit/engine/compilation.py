"""torch.compile of a task's `predict`: where it applies, and the fallback to eager execution."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._functorch import config as functorch_config

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import PretextTask
from sslkit.engine.precision import Machine
from sslkit.engine.settings import Settings


def eager_reason(task: PretextTask) -> str | None:
    """Return why torch.compile cannot take the task's `predict`, or None if it can."""
    for _, part, _ in task.parts():
        if not part.compiles:
            return f"torch.compile does not support predict of {type(part).__name__}"
    recurrent = next((type(module).__name__ for module in task.modules() if isinstance(module, nn.RNNBase)), None)
    return None if recurrent is None else f"torch.compile does not support recurrent layers ({recurrent})"


def adapt_compilation(settings: Settings, task: PretextTask) -> Settings:
    """Return the settings with compilation off, and the reason, if the task has to run eagerly."""
    reason = eager_reason(task) if settings.machine.compile else None
    if reason is None:
        return settings
    reasons = {"compile": f"off: {reason}"}
    machine = replace(settings.machine, compile=False, reasons={**settings.machine.reasons, **reasons})
    return replace(settings, machine=machine, reasons={**settings.reasons, **reasons})


class Predict:
    """Call `predict` of a task, compiled where compilation is on.

    The compiled function is one graph, except with SyncBatchNorm. If the compilation fails, `--compile auto` falls back to
    eager execution with a message, and `--compile on` raises SslkitError.
    """

    def __init__(self, task: PretextTask, machine: Machine) -> None:
        self.eager, self.required = task.predict, machine.compile_required
        self.fell_back = False
        # SyncBatchNorm communicates with other processes in the middle of the network: the graph ends and begins there.
        self.compiled: Callable[..., Any] | None = (
            torch.compile(task.predict, fullgraph=not machine.sync_batchnorm) if machine.compile else None
        )

    def __call__(self, batch: Any) -> Any:
        """Return the task's predictions for a batch."""
        if self.compiled is None:
            return self.eager(batch)
        try:
            # With the forward graph, not in the middle of the first backward pass: here a failure can fall back.
            with functorch_config.patch(force_non_lazy_backward_lowering=True):
                return self.compiled(batch)
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
            if self.required:
                raise SslkitError(
                    f"on, but predict cannot be compiled: {reason}", "use --compile off", flag="compile"
                ) from error
            say(f"  {'compile':<14} off: predict cannot be compiled ({reason}); running eagerly")
            self.compiled, self.fell_back = None, True
            return self.eager(batch)
