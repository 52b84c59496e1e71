"""torch.compile of a task's `predict`: where it applies, and the fallback to eager execution."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch._dynamo import config as dynamo_config
from torch._functorch import config as functorch_config

from sslkit.console import say
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import PretextTask
from sslkit.engine.precision import Machine, compilation_failure
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


def find_blocks(module: nn.Module) -> list[nn.Module]:
    """Return the modules that are compiled one by one: what is inside one stage of an encoder, and each head as a whole."""
    if isinstance(module, Encoder) and len(module.stages()) > 1:
        stage_of = {parameter: depth for depth, stage in enumerate(module.stages()) for parameter in stage}
        return [block for child in module.children() for block in _within_stages(child, stage_of)]
    holds_encoder = any(isinstance(part, Encoder) for part in module.modules() if part is not module)
    if holds_encoder or isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [block for child in module.children() for block in find_blocks(child)]
    return [module] if any(True for _ in module.parameters()) else []


def _within_stages(module: nn.Module, stage_of: dict[nn.Parameter, int]) -> list[nn.Module]:
    """Return the largest modules that can be called and whose parameters belong to one stage."""
    depths = {stage_of.get(parameter) for parameter in module.parameters()}
    if not depths:
        return []
    if len(depths) == 1 and not isinstance(module, nn.ModuleList | nn.ModuleDict):
        return [module]
    return [block for child in module.children() for block in _within_stages(child, stage_of)]


class Predict:
    """Call `predict` of a task, compiled where compilation is on.

    With one process it is one graph. With several each block is a graph of its own, because the gradients of a graph are
    all complete at the end of its backward pass only, and the exchange of the last blocks' should begin before the first
    blocks' are computed. If the compilation fails, `--compile auto` falls back to eager execution with a message, and
    `--compile on` raises SslkitError.
    """

    def __init__(self, task: PretextTask, machine: Machine) -> None:
        self.eager, self.required = task.predict, machine.compile_required
        self.fell_back = False
        self.compiled: Callable[..., Any] | None = None
        self._blocks: dict[nn.Module, Callable[..., Any]] = {}
        if machine.compile and machine.world.size == 1:
            self.compiled = torch.compile(task.predict, fullgraph=True)
        elif machine.compile:
            self.compiled = task.predict
            # Not dynamic: the sizes of crops and of a last micro-batch are few, and blocks of one class share the limit.
            self._blocks = {
                block: torch.compile(block.forward, fullgraph=True, dynamic=False) for block in dict.fromkeys(find_blocks(task))
            }

    @contextmanager
    def in_step(self) -> Iterator[None]:
        """Use the compiled blocks inside, for the backward pass too, which may compute activations again."""
        for block, forward in self._blocks.items():
            block.forward = forward
        try:
            with dynamo_config.patch(recompile_limit=8 * (1 + len(self._blocks))):
                yield
        finally:
            self._use_eager_blocks()

    def _use_eager_blocks(self) -> None:
        for block in self._blocks:
            block.__dict__.pop("forward", None)

    def __call__(self, batch: Any) -> Any:
        """Return the task's predictions for a batch."""
        if self.compiled is None:
            return self.eager(batch)
        try:
            # With the forward graph, not in the middle of the first backward pass: here a failure can fall back.
            with functorch_config.patch(force_non_lazy_backward_lowering=True):
                return self.compiled(batch)
        except RuntimeError as error:
            reason = compilation_failure(error)
            if reason is None:
                raise
            if self.required:
                raise SslkitError(
                    f"on, but predict cannot be compiled: {reason}", "use --compile off", flag="compile"
                ) from error
            say(f"  {'compile':<14} off: predict cannot be compiled ({reason}); running eagerly")
            self._use_eager_blocks()
            self.compiled, self.fell_back, self._blocks = None, True, {}
            return self.eager(batch)
