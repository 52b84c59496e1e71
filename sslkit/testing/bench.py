"""The test bench of a task: a few samples of its modality, a small encoder, and the engine's own steps."""

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
from sslkit.contract.source import Labels, ReadSeed, Source
from sslkit.contract.task import Batch, Clock, PretextTask, rows, select_needed
from sslkit.data.loader import Loader
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.micro_batches import BATCH_NORM
from sslkit.engine.parallel import ALONE, World
from sslkit.engine.precision import choose_machine
from sslkit.engine.seeds import seed_stage
from sslkit.engine.settings import Settings
from sslkit.engine.stepper import Stepper, to_device
from sslkit.registry import load_modality
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.recipes import with_task_settings

SAMPLES = 8


# What a faulty task usually raises; the promise that is being checked is broken by it.
TASK_ERRORS: tuple[type[Exception], ...] = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NameError),
    *(OSError, PicklingError, RuntimeError, SslkitError, TypeError, ValueError),
)


class ContractViolationError(Exception):
    """Report how a promise is broken."""


@dataclass
class Trace:
    """Gradients of each of some exact steps, and the state after the last one, by name."""

    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    state: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Prototype:
    """A task that was built once, and what it takes to set it back to the state before its first step."""

    task: PretextTask
    spec: PretrainSpec
    source: Source
    tensors: dict[str, Tensor]  # parameters and buffers, before the first step
    weights: Tensor | None  # for sampling


class Bench:
    """Provide steppers with a task before its first step, on data in a temporary folder.

    A task is built once for exact steps and once for others; its state is restored for each check.
    """

    def __init__(self, task_class: type[PretextTask]) -> None:
        self.task_class = task_class
        self.modality, self.encoders = load_modality(task_class.modality), load_modality(task_class.encodes)
        self._folder = tempfile.TemporaryDirectory()
        self._prototypes: dict[tuple[bool, int], Prototype] = {}

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
        clip: float | None = None,
    ) -> Stepper:
        """Return a stepper before its first step, on so many batches of data; the one before it cannot be used any more.

        `exact`: float64, plain gradient descent, and, for images, no BatchNorm in encoder and heads.
        """
        prototype = self._prototypes.get((exact, batches))
        if prototype is None:
            stepper, spec = self._build(exact, batches, world)
            stepper.before_epoch(0)
            tensors = {name: value.detach().clone() for name, value in _tensors(stepper.task).items()}
            prototype = Prototype(stepper.task, spec, stepper.settings.source, tensors, stepper.weights)
            self._prototypes[exact, batches] = prototype
        task = prototype.task
        with torch.no_grad():
            for name, value in _tensors(task).items():
                value.copy_(prototype.tensors[name])
        task.train().zero_grad(set_to_none=True)
        spec = prototype.spec.model_copy(update={"micro_batch": micro_batch or "auto", **({"clip": clip} if exact else {})})
        stepper = Stepper(task, _settings(spec, prototype.source, self.task_class.encodes, precision, world), Clock(steps=1000))
        stepper.weights = prototype.weights
        return stepper

    def new_stepper(self, batches: int = 1, prepared: bool = True) -> Stepper:
        """Return a stepper with a task of its own, to be compared with another.

        Not `prepared`: without `before_epoch(0)`, as for a run that is resumed.
        """
        stepper, _ = self._build(False, batches, ALONE)
        if prepared:
            stepper.before_epoch(0)
        return stepper

    def _build(self, exact: bool, batches: int, world: World) -> tuple[Stepper, PretrainSpec]:
        folder = Path(self._folder.name, str(batches))
        folder.mkdir(exist_ok=True)
        values: dict[str, Any] = {"batch_size": SAMPLES, "warmup": 0.0, "steps": 1000, "cache": "off", "workers": 0}
        values |= {"data": self.modality.example_data(folder, batches * SAMPLES)}
        if exact:
            values |= {"optimizer": "sgd", "lr": 0.05, "clip": None}
        values["encoder"] = self.task_class.defaults.get("encoder") or self.encoders.small_encoder(
            self.task_class.requires, exact
        )
        values["encoder_option"] = self.encoders.small_options.get(values["encoder"], {})
        spec = with_task_settings(PretrainSpec(task="check", **values), self.task_class)
        source = self.modality.source.open(spec)
        if "label" in self.task_class.needs:
            source.reveal_labels(example_labels(source.info.samples))
        spec = spec.updated({name: value for name, (value, _) in source.resolved.items()})
        settings = _settings(spec, source, self.task_class.encodes, "fp32", world)
        options = self.options(exact)
        seed_stage(0, "build", 0)
        build = RecipeBuilder(settings.recipe, settings.data, settings.encodes)
        encoder = self.task_class.build_encoder(options, build)
        task = self.task_class(options, encoder, settings.data)
        return Stepper(task.double() if exact else task, settings, Clock(steps=1000)), spec

    @staticmethod
    def raw(stepper: Stepper) -> dict[str, Any]:
        """Return the first batch as the loader delivers it."""
        return next(Loader(stepper.settings.source, 0, substitute=False)([np.arange(SAMPLES)], ReadSeed(0, 0)))

    def prepared(self, stepper: Stepper, share: slice = slice(None)) -> Batch:
        """Return a share of the first batch as `transform` gets it."""
        raw = {name: value[share] if isinstance(value, Tensor) else value for name, value in self.raw(stepper).items()}
        with torch.no_grad():
            prepared = to_device(raw, stepper.settings.source, torch.device("cpu"))
        return select_needed(prepared, stepper.task.needs)

    @staticmethod
    def transform(stepper: Stepper, prepared: Batch, rank: int = 0) -> Batch:
        """Return the transform of a prepared batch, in the precision of the task's weights; equal calls draw equal values."""
        seed_stage(0, "transform", stepper.clock.step, rank=rank)
        with torch.no_grad():
            batch = stepper.task.transform(prepared)
        dtype = next(stepper.task.parameters()).dtype
        return {name: _convert(value, dtype) for name, value in batch.items()}

    def transformed(self, stepper: Stepper, share: slice = slice(None), rank: int = 0) -> Batch:
        """Return the transform of a share of the first batch, in the precision of the task's weights."""
        return self.transform(stepper, self.prepared(stepper, share), rank)

    def exact_steps(self, micro_batch: int | None = None, world: World = ALONE) -> Trace:
        """Take two exact steps on one transformed batch, of which each process has a share."""
        stepper, trace = self.stepper(exact=True, micro_batch=micro_batch, world=world), Trace()
        norms = [name for name, module in stepper.task.named_modules() if isinstance(module, BATCH_NORM) and module.training]
        if norms:
            raise ContractViolationError(
                f"{norms[0]} is a BatchNorm, whose statistics depend on the micro-batch: "
                "give the head an option `norm` that takes layer"
            )
        share = world.share(SAMPLES)
        for _ in range(2):
            stepper.learn(rows(self.transformed(stepper), share.start, share.stop))
            trace.gradients.append({name: p.grad.clone() for name, p in stepper.task.named_parameters() if p.grad is not None})
        trace.state = {name: value.clone() for name, value in stepper.task.state_dict().items()}
        return trace

    def loss_curve(self, shares: int, world: World = ALONE, steps: int = 20) -> list[float]:
        """Return the losses of steps on a batch that is transformed in so many shares: all of them here, or one per process."""
        # Gradients are compared unclipped elsewhere; over twenty steps with one learning rate some losses would diverge.
        stepper = self.stepper(exact=True, world=world, clip=1.0)
        size = SAMPLES // shares
        ranks = range(shares) if world.size == 1 else [world.rank]
        losses = []
        for _ in range(steps):
            parts = [self.transformed(stepper, slice(rank * size, (rank + 1) * size), rank) for rank in ranks]
            batch = {
                name: torch.cat([part[name] for part in parts]) if isinstance(value, Tensor) else value
                for name, value in parts[0].items()
            }
            stepper.learn(batch)
            losses.append(stepper.settle()["loss"])
        return losses

    def features_in_order(self, world: World = ALONE) -> Tensor:
        """Return the features that a task gets in `before_epoch`, for three batches of data."""
        return self.stepper(world=world, batches=3).features()

    def options(self, exact: bool = False) -> Any:
        """Return the task's default options, its examples for the others, and, for exact steps, heads without BatchNorm."""
        options = self.task_class.Options
        norms = [name for name in options.model_fields if name.rpartition("__")[2] == "norm"]
        layer_norms = {name: "layer" for name in norms if exact}
        return options(**self.task_class.example_options(Path(self._folder.name)), **layer_norms)


def example_labels(samples: int) -> Labels:
    """Return labels of three classes, some of them unknown."""
    return Labels(np.arange(samples) % 4 - 1, ("first", "second", "third"))


def compare_traces(expected: Trace, actual: Trace, subject: str, tolerance: float = 1e-8) -> None:
    """Raise ContractViolationError if gradients or state differ by more than `tolerance`, relative to the largest value."""
    for step, (expected_step, actual_step) in enumerate(zip(expected.gradients, actual.gradients, strict=True), start=1):
        compare_tensors(expected_step, actual_step, tolerance, f"{subject} the gradient of", f" in step {step}")
    compare_tensors(expected.state, actual.state, tolerance, f"{subject} the state", " after two steps")


def compare_tensors(
    expected: dict[str, Tensor], actual: dict[str, Tensor], tolerance: float, subject: str, when: str = ""
) -> None:
    """Raise ContractViolationError if tensors differ by more than `tolerance`, relative to the largest value of each."""
    if expected.keys() != actual.keys():
        raise ContractViolationError(f"{subject} {sorted(expected.keys() ^ actual.keys())[0]} exists on one side only{when}")
    largest = max((float(value.double().abs().max()) for value in expected.values() if value.numel()), default=0.0)
    for name, value in expected.items():
        difference = float((value.double() - actual[name].double()).abs().max()) if value.numel() else 0.0
        # A tensor that is zero except for rounding is measured against the others.
        scale = max(float(value.double().abs().max()) if value.numel() else 0.0, 1e-6 * largest)
        if not math.isfinite(difference) or difference > tolerance * scale:
            raise ContractViolationError(f"{subject} {name} differs by {difference / scale if scale else difference:.1g}{when}")


def _settings(spec: PretrainSpec, source: Source, encodes: str, precision: str, world: World) -> Settings:
    return Settings(spec, source, choose_machine("cpu", precision, world=world), 0, {}, encodes)


def _tensors(task: PretextTask) -> dict[str, Tensor]:
    """Return parameters and all buffers, also those that no checkpoint holds."""
    return {**dict(task.named_parameters()), **dict(task.named_buffers())}


def _convert(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def first_difference(first: Batch, second: Batch) -> str | None:
    """Return the name of the first tensor in which two batches differ, None if there is none."""
    tensors = ((name, value) for name, value in first.items() if isinstance(value, Tensor))
    return next((name for name, value in tensors if not torch.equal(value, second[name])), None)
