"""`sslkit plan TASK`: time, memory and disk that a run will take, measured on this machine in less than a minute."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.contract.task import Clock
from sslkit.data.loader import Loader, epoch_batches
from sslkit.data.process_share import available_memory
from sslkit.engine.checkpoint import save_model
from sslkit.engine.collapse import Health
from sslkit.engine.job import TrainingJob, build_task
from sslkit.engine.launch import process_count
from sslkit.engine.memory import free_memory, peak_memory, used_memory
from sslkit.engine.memory_fit import settle_micro_batch
from sslkit.engine.pretrain import prepare
from sslkit.engine.rehearsal import measure_step, rehearse_epochs
from sslkit.engine.resume_file import save_resume
from sslkit.engine.run_folder import MODEL, RESUME
from sslkit.engine.settings import Settings, show_settings
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import PretrainSpec

_STEPS_SECONDS, _READ_SECONDS = 15, 8  # how long steps, and reading what is not cached, are measured


_USABLE = 0.9  # of the memory: what is free now need not be free later


@dataclass(frozen=True)
class PlanResult:
    """Result of `sslkit plan`; memory and disk in bytes, None where the system does not report memory."""

    samples_per_second: float
    steps: int
    seconds: float
    first_epoch_seconds: float
    memory: int | None
    memory_limit: int | None
    largest_batch: int | None
    cache_bytes: int
    run_bytes: int


def plan(spec: PretrainSpec) -> PlanResult:
    """Measure steps, reading, checkpoints and health checks, and add them up; no file is left behind.

    Raises SslkitError for everything that `sslkit pretrain` would refuse.
    """
    if process_count(spec) > 1:
        raise SslkitError("plan measures one process", "leave it out", flag="devices")
    job = prepare(spec)
    settings = job.settings
    show_settings(settings, job.name, job.out)
    small = max(2, settings.spec.batch_size // 4)
    low = _measure_peak(prepare(spec.updated({**settings.spec.data_values(), "batch_size": small})))
    first, again = _measure_reading(settings)
    stepper = _build_stepper(job)
    started_at = time.perf_counter()
    stepper.before_epoch(0)
    preparing_first = time.perf_counter() - started_at
    settle_micro_batch(stepper)
    step, raw = measure_step(stepper, _STEPS_SECONDS)
    high = peak_memory(settings.machine.device)
    batch, per_epoch = settings.spec.batch_size, settings.steps_per_epoch
    epoch_warm = per_epoch * (step + (again * batch if settings.workers == 0 else 0.0))
    epoch_cold = per_epoch * (step + first * batch if settings.machine.device.type == "cpu" else max(step, first * batch))
    if again > first / 2:  # nothing is cached: later epochs are as slow as the first
        epoch_warm = epoch_cold
    preparing = rehearse_epochs(stepper, 0.01 * epoch_warm)
    run_bytes, saving = _measure_checkpoint(stepper, raw)
    checking = _measure_health_check(stepper)

    def seconds(steps: float) -> float:
        epochs = steps / per_epoch
        run = min(epochs, 1) * epoch_cold + max(epochs - 1, 0) * epoch_warm + max(epochs - 1, 0) * preparing
        return preparing_first + run + max(epochs, 1) * saving + steps / _health_every(settings, steps) * checking

    steps = _choose_steps(settings, seconds)
    limit, largest = _memory_limit(settings.machine.device), None
    if limit is not None and low is not None and high is not None and high > low:
        largest = int(batch + (_USABLE * limit - high) * (batch - small) / (high - low))
    return PlanResult(
        samples_per_second=round(batch * per_epoch / epoch_warm, 1),
        steps=steps,
        seconds=round(seconds(steps), 1),
        first_epoch_seconds=round(preparing_first + epoch_cold, 3),
        memory=high,
        memory_limit=limit,
        largest_batch=None if largest is None else min(max(largest // 32 * 32, 2), settings.data.samples),
        cache_bytes=settings.source.cache_bytes(),
        run_bytes=run_bytes,
    )


def _build_stepper(job: TrainingJob) -> Stepper:
    return Stepper(build_task(job, initialize=False), job.settings, Clock(steps=10**6))


def _measure_peak(job: TrainingJob) -> int | None:
    """Return the peak memory of a few steps."""
    device, stepper = job.settings.machine.device, _build_stepper(job)
    stepper.before_epoch(0)
    settle_micro_batch(stepper)
    measure_step(stepper, 0)
    peak = peak_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    return peak


def _measure_reading(settings: Settings) -> tuple[float, float]:
    """Return the seconds to read a sample for the first time, with the run's workers, and again, in this process."""
    batches = epoch_batches(settings.data.samples, min(settings.spec.batch_size, 64), settings.spec.seed, 0)
    loader, read_seed = Loader(settings.source, settings.workers, substitute=True), ReadSeed(settings.spec.seed, 0)
    count, started_at = 0, time.perf_counter()
    for raw in loader(batches, read_seed):
        if count == 0 and settings.workers:
            started_at = time.perf_counter()  # the workers have started
        count += len(raw["index"])
        if time.perf_counter() - started_at > _READ_SECONDS:
            break
    counted = count - (len(raw["index"]) if settings.workers else 0)
    first = (time.perf_counter() - started_at) / counted if counted else 0.0
    loader.close()
    started_at = time.perf_counter()
    count = sum(len(raw["index"]) for raw in Loader(settings.source, 0, substitute=True)(batches[:2], read_seed))
    return first, (time.perf_counter() - started_at) / count


def _measure_checkpoint(stepper: Stepper, raw: dict[str, Any]) -> tuple[int, float]:
    """Return the bytes of both checkpoint files, and the seconds it takes to write them."""
    stepper.step(raw)  # the optimizer has no moments before the first step
    stepper.settle()
    with tempfile.TemporaryDirectory(prefix="sslkit-plan-") as folder:
        started_at = time.perf_counter()
        save_resume(Path(folder, RESUME), stepper.state())
        save_model(Path(folder, MODEL), stepper.task.exports(), {})
        seconds = time.perf_counter() - started_at
        return sum(file.stat().st_size for file in Path(folder).iterdir()), seconds


def _measure_health_check(stepper: Stepper) -> float:
    """Return the seconds of a health check."""
    spec = stepper.spec
    if not isinstance(spec, PretrainSpec) or spec.health_every == 0:
        return 0.0
    health = Health(stepper, spec)
    started_at = time.perf_counter()
    health.measure()
    return time.perf_counter() - started_at


def _health_every(settings: Settings, steps: float) -> float:
    assert isinstance(settings.spec, PretrainSpec)
    return max(20, steps / 100) if settings.spec.health_every == "auto" else settings.spec.health_every or 1


def _choose_steps(settings: Settings, seconds: Callable[[float], float]) -> int:
    """Return the steps of the run: as set, or as many as fit into the minutes."""
    spec = settings.spec
    if spec.steps is not None:
        return spec.steps
    if spec.minutes is not None:
        # What one more step adds to a long run: the start and the first epoch count once.
        return max(1, round(60 * spec.minutes / (seconds(20_000) - seconds(10_000)) * 10_000))
    assert isinstance(spec.epochs, int)
    return spec.epochs * settings.steps_per_epoch


def _memory_limit(device: torch.device) -> int | None:
    """Return the memory of the device in bytes, or the main memory that is free or used by this process; None if unknown."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    free = free_memory(device)
    if free is not None and device.type == "cpu":
        return free + used_memory()
    return available_memory()
