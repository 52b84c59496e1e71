"""One optimization step, and the state that steps change."""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import RunFailedError
from sslkit.contract.source import ReadSeed, Source
from sslkit.contract.task import Batch, Clock, PretextTask, select_needed
from sslkit.data.loader import Loader, ordered_batches
from sslkit.engine.compilation import Predict, adapt_compilation
from sslkit.engine.features import extract, map_samples
from sslkit.engine.memory import keep_freed_memory
from sslkit.engine.micro_batches import BATCH_NORM, MicroBatches, compute_gradients, norm_buffers, widen
from sslkit.engine.optimizer import build_optimizer, clip_gradients, follow_schedules, lr_factor, reset_state
from sslkit.engine.precision import is_out_of_memory
from sslkit.engine.profile import COPY, HOOKS, OPTIMIZER, REST, TRANSFORM, Enter, unmeasured
from sslkit.engine.seeds import seed_stage
from sslkit.engine.settings import Settings

_MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of dimensions


class Stepper:
    """Take steps with one task. The run's state is the task, its optimizer, the loss scaler and the sampling weights."""

    def __init__(self, task: PretextTask, settings: Settings, clock: Clock) -> None:
        self.settings = settings = adapt_compilation(settings, task)
        self.spec, self.machine, self.clock = settings.spec, settings.machine, clock
        if self.machine.device.type == "cpu":
            keep_freed_memory()
        if self.machine.sync_batchnorm:
            _convert_sync_batchnorm(task)
        self.task = task.to(self.machine.device).train()
        _set_memory_formats(self.task)
        self.world = self.machine.world
        self.world.broadcast(self._tensors())
        self.predict = Predict(task, self.machine)
        self.optimizer = build_optimizer(task, self.spec, settings.steps_per_epoch)
        self.scaler = self.machine.scaler()
        self.overflows = 0  # of fp16 gradients, whose steps were skipped
        self.weights: Tensor | None = None  # for sampling, where a task balances its labels
        self.enter: Enter = unmeasured  # called at the beginning of each stage of the step
        for _, part, _ in task.parts():
            part.clock = clock

    def before_epoch(self, epoch: int) -> None:
        """Let the task prepare an epoch."""
        self.clock.epoch = epoch
        seed_stage(self.spec.seed, "before_epoch", epoch)
        with torch.no_grad():
            self.task.before_epoch(self)
        self.world.broadcast([*self._tensors(), *([] if self.weights is None else [self.weights])])
        self.task.train()

    def step(self, raw: dict[str, Any]) -> dict[str, float]:
        """Take one step on a loaded batch and return what to log: loss, its terms, metrics, gradient norm, learning rate.

        Raises RunFailedError, before any weight moves, if the loss or the gradient is not finite.
        """
        started_at = time.perf_counter()
        try:
            batch = self.transformed(raw)
            transformed_at = time.perf_counter()
            metrics = self.learn(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            hint = f"try --micro-batch {max(1, self.micro_batch // 2)}"
            raise RunFailedError(
                f"out of memory in step {self.clock.step + 1} with {self.micro_batch} samples at once", hint
            ) from error
        self.enter(REST)
        if self.machine.device.type == "cpu":  # CUDA kernels run asynchronously, so this timing would be meaningless
            metrics["transform_share"] = (transformed_at - started_at) / (time.perf_counter() - started_at)
        return metrics

    @property
    def micro_batch(self) -> int:
        """Return the number of samples on this device at once."""
        share = self.spec.batch_size // self.world.size
        return min(self.spec.micro_batch or share, share)

    def transformed(self, raw: dict[str, Any]) -> Batch:
        """Return the task's transform of this process's rows of a loaded batch."""
        seed_stage(self.spec.seed, "transform", self.clock.step, rank=self.world.rank)
        self.enter(COPY)
        with torch.no_grad():
            prepared = to_device(raw, self.settings.source, self.machine.device)
            self.enter(TRANSFORM)
            batch: Batch = self.task.transform(select_needed(prepared, self.task.needs))
        return batch

    def learn(self, batch: Batch) -> dict[str, float]:
        """Take one step on a transformed batch; see `step`."""
        spec, clock, world = self.spec, self.clock, self.world
        self.optimizer.zero_grad(set_to_none=True)
        micro_batches = MicroBatches(
            self.task, self.predict, self.machine, batch, self.micro_batch, spec.seed, clock.step, self.enter
        )
        report = compute_gradients(micro_batches, self.scaler.scale)
        self.enter(OPTIMIZER)
        # Which parameters have a gradient does not depend on content, so all processes list the same ones.
        world.average(parameter.grad for parameter in self.task.parameters() if parameter.grad is not None)
        share = follow_schedules(self.optimizer, spec, clock)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.optimizer, spec.clip, spec.clip_by)
        means = {name: value.to(norm.dtype).mean() for name, value in report.metrics.items()}
        # One transfer from the device per step, of everything that is checked or logged.
        names = [*report.terms, *means, "gradient_norm"]
        values = torch.stack([widen(value) for value in (*report.terms.values(), *means.values(), norm)])
        world.average([values])
        metrics = dict(zip(names, values.tolist(), strict=True))
        self._check_finite(metrics, list(report.terms), batch)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not self.machine.sync_batchnorm:
            # Each process used its own micro-batches; features, teachers and checkpoints need common statistics.
            world.average(buffer for buffer in norm_buffers(self.task) if buffer.is_floating_point())
        self.enter(HOOKS)
        if self.scaler.get_scale() < scale:  # fp16 overflowed, and the step was skipped
            self.overflows += 1
        else:
            seed_stage(spec.seed, "after_step", clock.step)
            with torch.no_grad():
                self.task.after_step(report.remembered)
        clock.step += 1
        metrics |= {"overflows": float(self.overflows)} if self.scaler.is_enabled() else {}
        return {**metrics, "loss": sum(metrics[name] for name in report.terms), "lr": spec.lr * lr_factor(spec) * share}

    def _check_finite(self, metrics: dict[str, float], terms: list[str], batch: Batch) -> None:
        finite = all(math.isfinite(metrics[name]) for name in terms)
        # With a scaler an overflow of the gradient lowers the scale, as long as there is a smaller scale to try.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            finite = finite and math.isfinite(metrics["gradient_norm"])
        if finite:
            return
        tensors = {
            **{f"{name} of the transformed batch": value for name, value in batch.items()},
            **{f"weight {name}": value for name, value in self.task.named_parameters()},
            **{f"loss {name}": torch.tensor(metrics[name]) for name in terms},
            **{f"gradient of {name}": value.grad for name, value in self.task.named_parameters()},
            "gradient_norm": torch.tensor(metrics["gradient_norm"]),
        }
        raise RunFailedError(
            f"step {self.clock.step + 1} diverged: {_first_not_finite(tensors)} is not finite",
            f"the previous checkpoint is kept; try a lower --lr than {self.spec.lr:g}, a longer --warmup or --clip 1",
        )

    def check_state(self) -> None:
        """Raise RunFailedError if the task's state is not finite, which no checkpoint should hold."""
        name = _first_not_finite(self.task.state_dict())
        if name is not None:
            raise RunFailedError(f"{name} is not finite after step {self.clock.step}", "the previous checkpoint is kept")

    def state(self) -> dict[str, Any]:
        """Return everything a resumed run needs, the position included."""
        return {
            "task": self.task.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "overflows": self.overflows,
            "weights": self.weights,
            "step": self.clock.step,
            "steps": self.clock.steps,
            "schedule_start": self.clock.schedule_start,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.overflows = state.get("overflows", 0)
        self.weights = None if state["weights"] is None else state["weights"].cpu()
        self.clock.step, self.clock.steps = state["step"], state["steps"]
        self.clock.schedule_start = state["schedule_start"]

    # What a task may ask for in before_epoch (the protocol `Run`).

    def features(self, encoder: Encoder | None = None) -> Tensor:
        """Return features of all samples in data order, `[N, width]`, by the task's encoder or another, taken in eval mode."""
        encoder = self.task.encoder if encoder is None else encoder.to(self.machine.device)
        features = extract(encoder, self.settings.source, self.micro_batch, substitute=True, world=self.world)
        return features.layers["last"]

    def map(self, function: Callable[[Batch], Tensor]) -> Tensor:
        """Return a function of all samples in data order, `[N, ...]` on the CPU; it gets prepared batches, without gradient.

        The task is in eval mode meanwhile. Several processes take a share of the samples each.
        """
        training = self.task.training
        self.task.eval()
        try:
            needs, machine = self.task.needs, self.machine
            return map_samples(
                lambda batch: function(select_needed(batch, needs)),
                self.settings.source,
                machine.device,
                self.micro_batch,
                self.world,
            )
        finally:
            self.task.train(training)

    def batch(self, count: int, select: Callable[[Batch], Batch] = lambda batch: batch) -> Batch:
        """Return at most `count` samples at seeded places in the data, read and prepared: what `transform` gets.

        Samples that training never draws are left out. `select` reduces a few samples at a time to what is kept of them.
        """
        generator = torch.Generator().manual_seed(self.spec.seed)
        order = torch.randperm(self.settings.data.samples, generator=generator)
        rows = (order if self.weights is None else order[self.weights[order] > 0])[:count].numpy()
        loader = Loader(self.settings.source, workers=0, substitute=True)
        batches = [rows[part] for part in ordered_batches(len(rows), 32)]
        parts = [
            select(select_needed(to_device(raw, self.settings.source, self.machine.device), self.task.needs))
            for raw in loader(batches, ReadSeed(self.spec.seed, 0))
        ]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    def sample_balanced(self, labels: Tensor) -> None:
        """Sample each label equally often from now on; `labels` is int64 `[N]`, samples with a negative label are skipped."""
        labels = labels.cpu()
        known = labels.clamp(min=0)
        counts = torch.bincount(known, weights=(labels >= 0).double())
        self.weights = (1 / counts.clamp(min=1))[known].where(labels >= 0, 0.0)

    def reset_optimizer_state(self, module: nn.Module) -> None:
        """Drop the optimizer's state of a module whose weights were reset."""
        reset_state(self.optimizer, list(module.parameters()))

    def _tensors(self) -> list[Tensor]:
        return [*self.task.parameters(), *self.task.buffers()]


def _first_not_finite(tensors: dict[str, Any]) -> str | None:
    """Return the name of the first tensor that is not finite."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return None


def _set_memory_formats(module: nn.Module) -> None:
    """Store weights of convolutions, in two and three dimensions, with the channels last."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() in _MEMORY_FORMATS:
            tensor.data = tensor.data.to(memory_format=_MEMORY_FORMATS[tensor.dim()])


def _convert_sync_batchnorm(task: nn.Module) -> None:
    """Let BatchNorm use all processes; a norm that is registered in two places, as in a shared encoder, changes once."""
    from timm.layers.norm_act import convert_sync_batchnorm  # torch's drops activations that timm puts in norms

    for parent in list(task.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORM) and not isinstance(child, nn.SyncBatchNorm):
                parent.add_module(name, convert_sync_batchnorm(child))


def to_device(raw: dict[str, Any], source: Source, device: torch.device) -> Batch:
    """Return a loaded batch on the device: the source's prepared tensors, `index` and, once revealed, `label`."""
    tensors = {name: value.to(device, non_blocking=True) for name, value in raw.items() if isinstance(value, Tensor)}
    return source.prepare(tensors)
