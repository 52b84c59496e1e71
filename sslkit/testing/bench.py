"""Where a task is put to be checked: a handful of samples of its modality, a small encoder, the engine's own steps."""

import math
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from pickle import PicklingError
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.contract.task import Batch, Clock, PretextTask, rows
from sslkit.data.loader import Loader
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.micro_batches import BATCH_NORM
from sslkit.engine.parallel import ALONE, World
from sslkit.engine.precision import choose_machine
from sslkit.engine.pretrain import with_task_defaults
from sslkit.engine.seeds import seed_stage
from sslkit.engine.settings import Settings
from sslkit.engine.stepper import Stepper, to_device
from sslkit.registry import load_modality
from sslkit.specs.train import PretrainSpec

SAMPLES = 8


# What a wrong task usually dies of; the promise it was asked about is broken by that.
TASK_ERRORS: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, PicklingError, RuntimeError, SslkitError, TypeError, ValueError),
)


class ContractViolationError(Exception):
    """Say how a promise is broken."""


@dataclass
class Trace:
    """Hold what some exact steps left behind: the gradients of each, and the state at the end, by name."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)


class Bench:
    """Build fresh steppers around a task, on data in a folder that goes when the bench is left."""

    def __init__(self, task_class: type[PretextTask]) -> None:
        self.task_class = task_class
        self.modality = load_modality(task_class.modality)
        self._folder = tempfile.TemporaryDirectory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._folder.cleanup()

    def stepper(
        self,
        precision: str = "fp32",
        exact: bool = False,
        micro_batch: int | None = None,
        world: World = ALONE,
        batches: int = 1,
        prepared: bool = True,
        clip: float | None = None,
    ) -> Stepper:
        """Return a stepper before its first step, on so many batches of data.

        `exact`: float64, plain gradient descent, and, for images, no BatchNorm in encoder and heads. Not `prepared`:
        as a resumed run has it, for which nobody calls `before_epoch(0)`.
        """
        folder = Path(self._folder.name, str(batches))
        folder.mkdir(exist_ok=True)
        given: dict[str, Any] = {"batch_size": SAMPLES, "warmup": 0.0, "steps": 1000, "cache": "off", "workers": 0}
        given |= {"data": self.modality.example_data(folder, batches * SAMPLES), "micro_batch": micro_batch}
        if exact:
            given |= {"optimizer": "sgd", "lr": 0.05, "clip": clip}
        given["encoder"] = self.task_class.defaults.get("encoder") or self.modality.small_encoder(self.task_class.reads, exact)
        given["encoder_option"] = self.modality.small_options.get(given["encoder"], {})
        spec = with_task_defaults(PretrainSpec(task="check", **given), self.task_class)
        source = self.modality.source.open(spec)
        spec = spec.updated({name: value for name, (value, _) in source.resolved.items()})
        plan = Settings(spec, source, choose_machine("cpu", precision, world=world), 0, {})
        options = self.options(exact)
        seed_stage(0, "build", 0)
        encoder = self.task_class.build_encoder(options, RecipeBuilder(plan.recipe, plan.data))
        task = self.task_class(options, encoder, plan.data)
        stepper = Stepper(task.double() if exact else task, plan, Clock(steps=1000))
        if prepared:
            stepper.before_epoch(0)
        return stepper

    @staticmethod
    def raw(stepper: Stepper) -> dict[str, Any]:
        """Return the first batch as the loader delivers it."""
        return next(Loader(stepper.plan.source, 0, substitute=False)([np.arange(SAMPLES)], ReadSeed(0, 0)))

    def transformed(self, stepper: Stepper, own: slice = slice(None), rank: int = 0) -> Batch:
        """Return what the task makes of some rows of the first batch, in the precision of its weights."""
        raw = {name: value[own] if isinstance(value, Tensor) else value for name, value in self.raw(stepper).items()}
        seed_stage(0, "transform", stepper.clock.step, rank=rank)
        with torch.no_grad():
            batch = stepper.task.transform(to_device(raw, stepper.plan.source, torch.device("cpu")))
        dtype = next(stepper.task.parameters()).dtype
        return {name: _in(value, dtype) for name, value in batch.items()}

    def exact_steps(self, micro_batch: int | None = None, world: World = ALONE) -> Trace:
        """Take two exact steps on one transformed batch, of which each process has its share."""
        stepper, trace = self.stepper(exact=True, micro_batch=micro_batch, world=world), Trace()
        norms = [name for name, module in stepper.task.named_modules() if isinstance(module, BATCH_NORM)]
        if norms:
            raise ContractViolationError(
                f"{norms[0]} is a BatchNorm, which counts per piece: give the head an option `norm` that takes layer"
            )
        own = world.own(SAMPLES)
        for _ in range(2):
            stepper.learn(rows(self.transformed(stepper), own.start, own.stop))
            trace.gradients.append({name: p.grad.clone() for name, p in stepper.task.named_parameters() if p.grad is not None})
        trace.state = {name: value.clone() for name, value in stepper.task.state_dict().items()}
        return trace

    def loss_curve(self, shares: int, world: World = ALONE, steps: int = 20) -> list[float]:
        """Return the losses of steps whose batch was transformed in so many shares: here all of them, or this process's."""
        # Gradients were compared as they are; over twenty steps of one rate for all tasks some losses would run away.
        stepper = self.stepper(exact=True, world=world, clip=1.0)
        share = SAMPLES // shares
        ranks = range(shares) if world.size == 1 else [world.rank]
        losses = []
        for _ in range(steps):
            parts = [self.transformed(stepper, slice(rank * share, (rank + 1) * share), rank) for rank in ranks]
            batch = {
                name: torch.cat([part[name] for part in parts]) if isinstance(value, Tensor) else value
                for name, value in parts[0].items()
            }
            losses.append(stepper.learn(batch)["loss"])
        return losses

    def features_in_order(self, world: World = ALONE) -> Tensor:
        """Return the features that a task gets in `before_epoch`, of three batches of data."""
        return self.stepper(world=world, batches=3).features()

    def options(self, exact: bool = False) -> Any:
        """Return the task's defaults, its examples of what has none, and, for exact steps, heads without BatchNorm."""
        options = self.task_class.Options
        norms = [name for name in options.model_fields if name.rpartition("__")[2] == "norm"]
        given = {name: "layer" for name in norms if exact}
        return options(**self.task_class.example_options(Path(self._folder.name)), **given)


def compare_traces(one: Trace, other: Trace, what: str, tolerance: float = 1e-8) -> None:
    """Raise Broken if gradients or state differ by more than `tolerance`, relative to the largest value of each tensor."""
    for step, (expected, found) in enumerate(zip(one.gradients, other.gradients, strict=True), start=1):
        _compare(expected, found, tolerance, f"{what} the gradient of", f" in step {step}")
    _compare(one.state, other.state, tolerance, f"{what} the state", " after two steps")


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], tolerance: float, what: str, when: str) -> None:
    if expected.keys() != found.keys():
        raise ContractViolationError(f"{what} {sorted(expected.keys() ^ found.keys())[0]} is there or not{when}")
    largest = max((float(value.abs().max()) for value in expected.values() if value.numel()), default=0.0)
    for name, value in expected.items():
        difference = float((value.double() - found[name].double()).abs().max()) if value.numel() else 0.0
        # What is zero but for rounding is measured against the others.
        scale = max(float(value.double().abs().max()) if value.numel() else 0.0, 1e-6 * largest)
        if not math.isfinite(difference) or difference > tolerance * scale:
            raise ContractViolationError(f"{what} {name} differs by {difference / scale if scale else difference:.1g}{when}")


def _in(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
