"""One optimization step, and the state that steps change."""

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import RunFailedError
from sslkit.contract.source import ReadSeed, Source
from sslkit.contract.task import Batch, Clock, PretextTask
from sslkit.data.loader import Loader, ordered_batches
from sslkit.engine.features import extract
from sslkit.engine.memory import keep_freed_memory
from sslkit.engine.micro_batches import BATCH_NORM, MicroBatches, compute_gradients, norm_buffers, widen
from sslkit.engine.optimizer import build_optimizer, clip_gradients, follow_schedules
from sslkit.engine.precision import is_out_of_memory
from sslkit.engine.profile import COPY, HOOKS, OPTIMIZER, TRANSFORM, Enter, unmeasured
from sslkit.engine.seeds import seed_stage
from sslkit.engine.settings import Settings


class Stepper:
    """Take steps with one task: it, its optimizer, the loss scaler and the sampler's weights are the run's state."""

    def __init__(self, task: PretextTask, plan: Settings, clock: Clock) -> None:
        self.plan, self.spec, self.machine, self.clock = plan, plan.spec, plan.machine, clock
        if self.machine.device.type == "cpu":
            keep_freed_memory()
        if self.machine.sync_batchnorm:
            _synchronize(task)
        self.task = task.to(self.machine.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.world = self.machine.world
        self.world.copy_from_first(self._tensors())
        self.predict: Callable[[Batch], Any] = self.machine.compiled(task.predict)
        self.optimizer = build_optimizer(task, self.spec, plan.steps_per_epoch)
        self.scaler = self.machine.scaler()
        self.overflows = 0  # of fp16 gradients, whose steps were skipped
        self.weights: Tensor | None = None  # of samples, where a task asked for balance
        self.enter: Enter = unmeasured  # told which stage of the step begins
        for _, part, _ in task.parts():
            part.clock = clock

    def before_epoch(self, epoch: int) -> None:
        """Let the task prepare an epoch."""
        self.clock.epoch = epoch
        seed_stage(self.spec.seed, "before_epoch", epoch)
        with torch.no_grad():
            self.task.before_epoch(self)
        self.world.copy_from_first([*self._tensors(), *([] if self.weights is None else [self.weights])])
        self.task.train()

    def step(self, raw: dict[str, Any]) -> dict[str, float]:
        """Take one step on a loaded batch and return what to log: loss, its terms, metrics, gradient norm, rate.

        Raises RunFailedError, before any weight moves, if the loss or the gradient is not finite.
        """
        began = time.perf_counter()
        try:
            batch = self.transformed(raw)
            transformed = time.perf_counter()
            said = self.learn(batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            hint = f"try --micro-batch {max(1, self.micro_batch // 2)}"
            raise RunFailedError(
                f"out of memory in step {self.clock.step + 1} with {self.micro_batch} samples at once", hint
            ) from error
        if self.machine.device.type == "cpu":  # elsewhere the work goes on behind the call's back
            said["transform_share"] = (transformed - began) / (time.perf_counter() - began)
        return said

    @property
    def micro_batch(self) -> int:
        """Return how many samples are on this device at once."""
        share = self.spec.batch_size // self.world.size
        return min(self.spec.micro_batch or share, share)

    def transformed(self, raw: dict[str, Any]) -> Batch:
        """Return what the task's transform makes of this process's rows of a loaded batch."""
        seed_stage(self.spec.seed, "transform", self.clock.step, rank=self.world.rank)
        self.enter(COPY)
        with torch.no_grad():
            there = to_device(raw, self.plan.source, self.machine.device)
            self.enter(TRANSFORM)
            batch: Batch = self.task.transform(there)
        return batch

    def learn(self, batch: Batch) -> dict[str, float]:
        """Take one step on a transformed batch; see `step`."""
        spec, clock, world = self.spec, self.clock, self.world
        self.optimizer.zero_grad(set_to_none=True)
        pieces = MicroBatches(self.task, self.predict, self.machine, batch, self.micro_batch, spec.seed, clock.step, self.enter)
        report = compute_gradients(pieces, self.scaler.scale)
        self.enter(OPTIMIZER)
        # Which parameters have a gradient does not depend on content, so all processes list the same ones.
        world.average(parameter.grad for parameter in self.task.parameters() if parameter.grad is not None)
        share = follow_schedules(self.optimizer, spec, clock)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.optimizer, spec.clip)
        means = {name: value.to(norm.dtype).mean() for name, value in report.metrics.items()}
        # One look at the device per step, for everything that is checked or logged.
        names = [*report.terms, *means, "gradient_norm"]
        seen = torch.stack([widen(value) for value in (*report.terms.values(), *means.values(), norm)])
        world.average([seen])
        said = dict(zip(names, seen.tolist(), strict=True))
        self._check(said, list(report.terms), batch)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if not self.machine.sync_batchnorm:
            # Each process counted its own pieces; features, teachers and checkpoints need one answer.
            world.average(buffer for buffer in norm_buffers(self.task) if buffer.is_floating_point())
        self.enter(HOOKS)
        if self.scaler.get_scale() < scale:  # fp16 overflowed, and the step was skipped
            self.overflows += 1
        else:
            seed_stage(spec.seed, "after_step", clock.step)
            with torch.no_grad():
                self.task.after_step(report.seen)
        clock.step += 1
        said |= {"overflows": float(self.overflows)} if self.scaler.is_enabled() else {}
        return {**said, "loss": sum(said[name] for name in report.terms), "lr": spec.lr * share}

    def _check(self, said: dict[str, float], terms: list[str], batch: Batch) -> None:
        finite = all(math.isfinite(said[name]) for name in terms)
        # With a scaler an overflow of the gradient is its business, as long as there is a smaller scale to try.
        if not self.scaler.is_enabled() or self.scaler.get_scale() < 1:
            finite = finite and math.isfinite(said["gradient_norm"])
        if finite:
            return
        computed = {
            **{f"{name} of the transformed batch": value for name, value in batch.items()},
            **{f"weight {name}": value for name, value in self.task.named_parameters()},
            **{f"loss {name}": torch.tensor(said[name]) for name in terms},
            **{f"gradient of {name}": value.grad for name, value in self.task.named_parameters()},
            "gradient_norm": torch.tensor(said["gradient_norm"]),
        }
        raise RunFailedError(
            f"step {self.clock.step + 1} diverged: {_first_bad(computed)} is not finite",
            f"the checkpoint before is kept; try a lower --lr than {self.spec.lr:g}, a longer --warmup or --clip 1",
        )

    def check_state(self) -> None:
        """Raise RunFailedError for a state that no checkpoint should hold: one that is not finite."""
        bad = _first_bad(self.task.state_dict())
        if bad is not None:
            raise RunFailedError(f"step {self.clock.step} left {bad} not finite", "the checkpoint before is kept")

    def rehearse(self, batches: Iterable[dict[str, Any]], seconds: float, stopped: Callable[[], bool]) -> float:
        """Return the median seconds of warm steps, for at most `seconds` or until stopped, and leave no trace in the state."""
        before = {name: value.clone() for name, value in self.task.state_dict().items()}
        step, times = self.clock.step, []
        began = last = time.perf_counter()
        for raw in batches:
            self.step(raw)
            now = time.perf_counter()
            times.append(now - last)
            last = now
            if self.world.any(stopped() or (now - began > seconds and len(times) > 1)):
                break
        self.task.load_state_dict(before)
        self.optimizer.state.clear()
        self.scaler, self.overflows = self.machine.scaler(), 0
        self.clock.step = step
        warm = sorted(times[1:] or times)
        return self.world.from_first(warm[len(warm) // 2])

    def rehearse_epochs(self, negligible: float, most: int = 5) -> float:
        """Return the seconds that preparing an epoch takes on average, the first excepted, and leave no trace in the state.

        Epochs are prepared one after the other until one takes longer than `negligible` seconds: it stands for as many.
        """
        if type(self.task).before_epoch is PretextTask.before_epoch:
            return 0.0
        before, weights = {name: value.clone() for name, value in self.task.state_dict().items()}, self.weights
        average = 0.0
        for epoch in range(1, most + 1):
            began = time.perf_counter()
            self.before_epoch(epoch)
            seconds = self.world.from_first(time.perf_counter() - began)
            if seconds > negligible:
                average = seconds / epoch
                break
        self.task.load_state_dict(before)
        self.weights, self.clock.epoch = weights, 0
        return average

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
            "began": self.clock.began,
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Put a saved state back."""
        self.task.load_state_dict(state["task"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.overflows = state.get("overflows", 0)
        self.weights = None if state["weights"] is None else state["weights"].cpu()
        self.clock.step, self.clock.steps, self.clock.began = state["step"], state["steps"], state["began"]

    # What a task may ask for in before_epoch (the protocol `Run`).

    def features(self, encoder: Encoder | None = None) -> Tensor:
        """Return features of all samples in data order, `[N, width]`, by the task's encoder or another, taken in eval mode."""
        encoder = self.task.encoder if encoder is None else encoder.to(self.machine.device)
        found = extract(encoder, self.plan.source, self.micro_batch, substitute=True, world=self.world)
        return found.layers["last"]

    def images(self, count: int) -> Tensor:
        """Return `count` images at seeded places in the data, `[count, C, canvas, canvas]` in [0, 1]."""
        images: Tensor = self.drawn(count)["image"]
        return images

    def drawn(self, count: int, pick: Callable[[Batch], Batch] = lambda batch: batch) -> Batch:
        """Return at most `count` samples at seeded places, of those that training draws, as `transform` sees them.

        `pick` says what to keep of a few of them at a time.
        """
        generator = torch.Generator().manual_seed(self.spec.seed)
        order = torch.randperm(self.plan.data.samples, generator=generator)
        rows = (order if self.weights is None else order[self.weights[order] > 0])[:count].numpy()
        loader = Loader(self.plan.source, workers=0, substitute=True)
        batches = [rows[part] for part in ordered_batches(len(rows), 32)]
        found = [
            pick(to_device(raw, self.plan.source, self.machine.device)) for raw in loader(batches, ReadSeed(self.spec.seed, 0))
        ]
        return {name: torch.cat([batch[name] for batch in found]) for name in found[0]}

    def balance(self, labels: Tensor) -> None:
        """Draw each label equally often from now on; `labels` is int64 `[N]`, and samples below 0 are left out."""
        labels = labels.cpu()
        known = labels.clamp(min=0)
        counts = torch.bincount(known, weights=(labels >= 0).double())
        self.weights = (1 / counts.clamp(min=1))[known].where(labels >= 0, 0.0)

    def forget(self, module: nn.Module) -> None:
        """Drop the optimizer's state of a module whose weights were reset."""
        for parameter in module.parameters():
            self.optimizer.state.pop(parameter, None)

    def _tensors(self) -> list[Tensor]:
        return [*self.task.parameters(), *self.task.buffers()]


def _first_bad(tensors: dict[str, Any]) -> str | None:
    """Return the name of the first tensor that is not finite."""
    for name, value in tensors.items():
        if isinstance(value, Tensor) and value.is_floating_point() and not torch.isfinite(value).all():
            return name
    return None


def _synchronize(task: nn.Module) -> None:
    """Let BatchNorm count over all processes; a norm that is found in two places, as in a shared encoder, changes once."""
    from timm.layers.norm_act import convert_sync_batchnorm  # torch's drops activations that timm puts in norms

    for parent in list(task.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BATCH_NORM) and not isinstance(child, nn.SyncBatchNorm):
                parent.add_module(name, convert_sync_batchnorm(child))


def to_device(raw: dict[str, Any], source: Source, device: torch.device) -> Batch:
    """Return what `transform` sees of a loaded batch: the source's tensors and `index`, int64 `[B]`."""
    tensors = {name: value.to(device, non_blocking=True) for name, value in raw.items() if isinstance(value, Tensor)}
    return source.prepare(tensors)
