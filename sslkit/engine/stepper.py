"""One optimization step, and the state that steps change."""

import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import RunFailedError
from sslkit.contract.source import ReadSeed, Rows, Source
from sslkit.contract.task import Batch, Clock, PretextTask, select_needed
from sslkit.data.loader import Loader, epoch_batches, mixed_batches, ordered_batches
from sslkit.engine.buckets import GradientBuckets
from sslkit.engine.compilation import Predict, adapt_compilation
from sslkit.engine.features import extract, map_samples
from sslkit.engine.fusion import build_fusion
from sslkit.engine.memory import keep_freed_memory
from sslkit.engine.micro_batches import MicroBatches, StepReport, compute_gradients, has_batch_norm, norm_buffers, widen
from sslkit.engine.optimizer import build_optimizer, clip_gradients, follow_schedules, lr_factor, reset_state
from sslkit.engine.precision import is_out_of_memory
from sslkit.engine.profile import COPY, HOOKS, OPTIMIZER, REST, TRANSFORM, Enter, unmeasured
from sslkit.engine.seeds import seed_stage
from sslkit.engine.settings import Settings
from sslkit.engine.sharded_tensors import distribute_like, full_values, load_optimizer_state, local_parts, optimizer_state
from sslkit.engine.sharding import ShardedEncoders
from sslkit.engine.signals import StopSignal
from sslkit.engine.step_numbers import Snapshot, StepNumbers, ignore_numbers
from sslkit.nn.fusion import fusing
from sslkit.nn.sync_batchnorm import convert_sync_batchnorm
from sslkit.specs.train import FEWEST_AT_ONCE, PretrainSpec

Report = Callable[[int, dict[str, float]], None]

STOP, SAVE = REQUESTS = ("stop requested", "checkpoint requested")
_MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by number of dimensions


class Stepper:
    """Take steps with one task. The run's state is the task, its optimizer, the loss scaler and the sampling weights."""

    def __init__(self, task: PretextTask, settings: Settings, clock: Clock) -> None:
        self.settings = settings = adapt_compilation(settings, task)
        self.spec, self.machine, self.clock = settings.spec, settings.machine, clock
        if self.machine.device.type == "cpu":
            keep_freed_memory()
        if self.machine.sync_batchnorm and self.machine.world.size > 1:
            convert_sync_batchnorm(task)
        self.task = task.to(self.machine.device).train()
        _set_memory_formats(self.task)
        self.world = self.machine.world
        self.world.broadcast(self._tensors())
        self.sharded = ShardedEncoders(task, self.machine) if self.machine.shard else None
        self.predict, self.fusion = Predict(task, self.machine), build_fusion(self.machine)
        self.buckets = GradientBuckets(task, self.world) if self.world.size > 1 else None
        self.optimizer = build_optimizer(task, self.spec, settings.steps_per_epoch)
        self.scaler = self.machine.scaler()
        self.overflows = 0  # of fp16 gradients, whose steps were skipped
        self.weights: Tensor | None = None  # for sampling, where a task balances its labels
        self.enter: Enter = unmeasured  # called at the beginning of each stage of the step
        self.stop = StopSignal()  # what signals ask of this process
        self.requests: set[str] = set()  # what they ask of any process: known to all in the same step
        self._arrived: set[str] = set()  # of the requests, those that have been read, which each process does when it can
        self.report: Report = ignore_numbers  # called with the numbers of each step, once they are known
        # The numbers of a step are read during the next one, so that the device never waits for the host. Other devices
        # compute while the host waits anyway, and an overflow of fp16 decides what else happens in its step; optimizers of
        # sharded weights cannot skip a step.
        on_cuda = self.machine.device.type == "cuda"
        self.reads_late = on_cuda and not self.scaler.is_enabled() and self.sharded is None
        self._numbers: StepNumbers | None = None
        self._metrics: dict[str, float] = {}
        self.loss_terms: tuple[str, ...] = ()  # of the task, once there was a step
        self.metric_names: tuple[str, ...] = ()  # of the task, in its order, once there was a step
        for _, part, _ in task.parts():
            part.clock = clock

    @cached_property
    def snapshot(self) -> Snapshot:
        """Return the copy of what a step changes beside the weights, from before the step."""
        buffers = list(self.task.buffers()) if self.reads_late else list(norm_buffers(self.task))
        return Snapshot(self.task, buffers, teachers=self.reads_late)

    def update_spec(self, **values: Any) -> None:
        """Replace settings of the run that were measured after it was prepared."""
        self.spec = self.spec.model_copy(update=values)
        self.settings = replace(self.settings, spec=self.spec)

    def before_epoch(self, epoch: int) -> None:
        """Let the task prepare an epoch."""
        self.settle()
        self.clock.epoch = epoch
        seed_stage(self.spec.seed, "before_epoch", epoch)
        with torch.no_grad():
            self.task.before_epoch(self)
        self.world.broadcast([*self._tensors(), *([] if self.weights is None else [self.weights])])
        self.task.train()

    def step(self, raw: dict[str, Any]) -> None:
        """Take one step on a loaded batch. Its numbers are known after `settle`, or during the next step.

        Raises RunFailedError if the loss or the gradient of the step before, or of this one, is not finite: no weight has
        moved in that step, and all other state is as it was before it.
        """
        started_at = time.perf_counter()
        try:
            batch = self.transformed(raw)
            transformed_at = time.perf_counter()
            self.learn(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            half = max(1, self.micro_batch // 2)
            few = half < FEWEST_AT_ONCE and has_batch_norm(self.task)
            raise RunFailedError(
                f"out of memory in step {self.clock.step + 1} with {self.micro_batch} samples at once",
                f"try a smaller --size, or --micro-batch {half}" if few else f"try --micro-batch {half}",
            ) from error
        self.enter(REST)
        if not self.reads_late:
            if self.machine.device.type == "cpu" and self._numbers is not None:
                share = (transformed_at - started_at) / (time.perf_counter() - started_at)
                self._numbers.extra["transform_share"] = share
            self.settle()
            self._publish_requests()

    @property
    def micro_batch(self) -> int:
        """Return the number of samples on this device at once."""
        share = self.spec.batch_size // self.world.size
        return share if self.spec.micro_batch == "auto" else min(self.spec.micro_batch, share)

    def transformed(self, raw: dict[str, Any]) -> Batch:
        """Return the task's transform of this process's rows of a loaded batch."""
        seed_stage(self.spec.seed, "transform", self.clock.step, rank=self.world.rank)
        self.enter(COPY)
        with torch.no_grad():
            prepared = to_device(raw, self.settings.source, self.machine.device)
            self.enter(TRANSFORM)
            with fusing(self.fusion):
                batch = self.task.transform(select_needed(prepared, self.task.needs))
            return store_narrow(batch, self.task.encoder_inputs, self.machine.autocast_dtype)

    def learn(self, batch: Batch) -> None:
        """Take one step on a transformed batch; see `step`."""
        spec, clock, world = self.spec, self.clock, self.world
        self.enter(REST)
        self.settle()
        self._publish_requests()
        self.snapshot.take()
        self.optimizer.zero_grad(set_to_none=True)
        micro_batches = MicroBatches(
            self.task, self.predict, self.machine, batch, self.micro_batch, spec.seed, clock.step, self.enter
        )
        buckets = self.buckets
        # Which gradients are computed may change with the number of micro-batches, and with what a task does in an epoch.
        exchange = nullcontext() if buckets is None else buckets.exchange(len(micro_batches.starts), clock.epoch)
        with exchange, self.predict.in_step():
            report = compute_gradients(micro_batches, self.scaler.scale)
        self.enter(OPTIMIZER)
        share = follow_schedules(self.optimizer, spec, clock)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.optimizer, spec.clip, spec.clip_by)
        self._numbers = self._measure(report, norm, batch)
        self._numbers.extra["lr"] = spec.lr * lr_factor(spec) * share
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
        if self.scaler.is_enabled():
            self._numbers.extra["overflows"] = float(self.overflows)

    def _measure(self, report: StepReport, norm: Tensor, batch: Batch) -> StepNumbers:
        """Collect everything of a step that is checked or logged: one transfer from the device.

        Where it is read late, the optimizer gets the check on the device, and skips the step if it fails.
        """
        means = {name: value.to(norm.dtype).mean() for name, value in report.metrics.items()}
        self.loss_terms, self.metric_names = tuple(report.terms), tuple(means)
        requests = self._take_requests(norm) if self.world.size > 1 else {}
        values = torch.stack([widen(value) for value in (*report.terms.values(), *means.values(), *requests.values(), norm)])
        self.world.average([values])
        names = [*report.terms, *means, *requests, "gradient_norm"]
        numbers = StepNumbers(self.clock.step + 1, list(report.terms), names, values, batch)
        if self.reads_late:
            finite = values[: len(report.terms)].isfinite().all() & values[-1].isfinite()
            self.optimizer.found_inf = 1 - finite.float()  # type: ignore[attr-defined]
        else:
            self._check_finite(numbers)
        return numbers

    def _take_requests(self, norm: Tensor) -> dict[str, Tensor]:
        """Return what signals ask of this process, to travel with the numbers: all processes learn it in the same step."""
        flags = (self.stop.signal > 0, self.stop.checkpoint)
        self.stop.checkpoint = False  # it is on its way; a signal to stop stays
        return {name: norm.new_full((), float(flag)) for name, flag in zip(REQUESTS, flags, strict=True)}

    def _publish_requests(self) -> None:
        self.requests |= self._arrived
        self._arrived = set()

    def settle(self) -> dict[str, float]:
        """Return the numbers of the last step: loss, its terms, metrics, gradient norm, learning rate.

        Waits for the device, and raises RunFailedError, if they have not been read yet; see `step`.
        """
        if self._numbers is not None:
            numbers = self._numbers
            metrics = numbers.read() if not self.reads_late else self._check_finite(numbers)
            self._numbers = None
            self._arrived |= {name for name in REQUESTS & metrics.keys() if metrics.pop(name) > 0}
            self._metrics = {**metrics, "loss": sum(metrics[name] for name in numbers.terms), **numbers.extra}
            self.report(numbers.step, self._metrics)
        return self._metrics

    def _check_finite(self, numbers: StepNumbers) -> dict[str, float]:
        """Return the values of a step; put its state back and raise RunFailedError if one is not finite."""
        metrics = numbers.read()
        finite = all(math.isfinite(metrics[name]) for name in numbers.terms)
        # With a scaler an overflow of the gradient lowers the scale, as long as there is a smaller scale to try.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            finite = finite and math.isfinite(metrics["gradient_norm"])
        if finite:
            return metrics
        self._numbers = None
        self.snapshot.restore()
        self.clock.step = numbers.step - 1
        tensors = {
            **{f"{name} of the transformed batch": value for name, value in numbers.batch.items()},
            **{f"weight {name}": value for name, value in self.task.named_parameters()},
            **{f"loss {name}": torch.tensor(metrics[name]) for name in numbers.terms},
            **{f"gradient of {name}": value.grad for name, value in self.task.named_parameters()},
            "gradient_norm": torch.tensor(metrics["gradient_norm"]),
        }
        raise RunFailedError(
            f"step {numbers.step} diverged: {_first_not_finite(tensors)} is not finite",
            f"the previous checkpoint is kept; try a lower --lr than {self.spec.lr:g}, a longer --warmup or --clip 1",
        )

    def check_state(self, state: dict[str, Any]) -> None:
        """Raise RunFailedError if the task's state is not finite, which no checkpoint should hold."""
        name = _first_not_finite(state["task"])
        if name is not None:
            raise RunFailedError(f"{name} is not finite after step {self.clock.step}", "the previous checkpoint is kept")

    def state(self) -> dict[str, Any]:
        """Return everything a resumed run needs, the position included."""
        return {
            "task": full_values(dict(self.task.state_dict())),
            "optimizer": optimizer_state(self.optimizer),
            "scaler": self.scaler.state_dict(),
            "overflows": self.overflows,
            "weights": self.weights,
            "step": self.clock.step,
            "steps": self.clock.steps,
            "schedule_start": self.clock.schedule_start,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        current = self.task.state_dict()
        weights = {
            name: distribute_like(value, current[name]) if name in current else value for name, value in state["task"].items()
        }
        self.task.load_state_dict(weights)
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.overflows = state.get("overflows", 0)
        self.weights = None if state["weights"] is None else state["weights"].cpu()
        self.clock.step, self.clock.steps = state["step"], state["steps"]
        self.clock.schedule_start = state["schedule_start"]

    def whole_weights(self) -> AbstractContextManager[None]:
        """Return the context in which a process may call the networks while others do not; all processes have to enter it."""
        return nullcontext() if self.sharded is None else self.sharded.gathered()

    # What a task may ask for in before_epoch (the protocol `Run`).

    def features(self, encoder: Encoder | None = None) -> Tensor:
        """Return features of all samples in data order, `[N, width]`, by the task's encoder or another, taken in eval mode."""
        encoder = self.task.encoder if encoder is None else encoder.to(self.machine.device)
        with self.whole_weights():
            features = extract(encoder, self.settings.source, self.machine, self.micro_batch, substitute=True)
        return features.layers["last"]

    def map(self, function: Callable[[Batch], Tensor]) -> Tensor:
        """Return a function of all samples in data order, `[N, ...]` on the CPU; it gets prepared batches, without gradient.

        The task is in eval mode meanwhile. Several processes take a share of the samples each.
        """
        training = self.task.training
        self.task.eval()
        try:
            needs = self.task.needs
            with self.whole_weights():
                return map_samples(
                    lambda batch: function(select_needed(batch, needs)),
                    self.settings.source,
                    self.machine,
                    self.micro_batch,
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

    def epoch_batches(self, epoch: int) -> list[Rows]:
        """Return the rows of each batch of an epoch."""
        spec, labels = self.spec, self.settings.source.labels
        share = spec.labeled_in_batch if isinstance(spec, PretrainSpec) else "auto"
        if labels is None or labels.known.all() or share == "auto" or self.weights is not None:
            return epoch_batches(self.settings.data.samples, spec.batch_size, spec.seed, epoch, self.weights)
        labeled = max(1, round(share * spec.batch_size))
        return mixed_batches(labels.known, labeled, spec.batch_size, spec.seed, epoch)

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
        return [tensor for tensor in (*self.task.parameters(), *self.task.buffers()) if not isinstance(tensor, DTensor)]


def _first_not_finite(tensors: dict[str, Any]) -> str | None:
    """Return the name of the first tensor that is not finite."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(*local_parts([value])).all():
            return name
    return None


def _set_memory_formats(module: nn.Module) -> None:
    """Store weights of convolutions, in two and three dimensions, with the channels last."""
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() in _MEMORY_FORMATS:
            tensor.data = tensor.data.to(memory_format=_MEMORY_FORMATS[tensor.dim()])


def store_narrow(batch: Batch, names: tuple[str, ...], dtype: torch.dtype | None) -> Batch:
    """Return a batch with these entries in the precision of autocast: half of the memory until the last micro-batch."""
    return batch if dtype is None else {name: value.to(dtype) if name in names else value for name, value in batch.items()}


def to_device(raw: dict[str, Any], source: Source, device: torch.device) -> Batch:
    """Return a loaded batch on the device: the source's prepared tensors, `index` and, once revealed, `label`."""
    tensors = {name: value.to(device, non_blocking=True) for name, value in raw.items() if isinstance(value, Tensor)}
    return source.prepare(tensors)
