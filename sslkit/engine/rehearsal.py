"""Rehearsed steps and epochs, which measure a run before it starts and leave no trace in its state."""

import math
import time
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any

from sslkit.console import duration, say
from sslkit.contract.source import ReadSeed
from sslkit.contract.task import PretextTask
from sslkit.data.loader import Loader
from sslkit.engine.optimizer import reset_state
from sslkit.engine.signals import StopSignal
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import ENOUGH_STEPS, FEW_STEPS, PretrainSpec, TrainSpec


def rehearse_steps(
    stepper: Stepper, batches: Iterable[dict[str, Any]], seconds: float, stopped: Callable[[], bool] = lambda: False
) -> float:
    """Return the median seconds of warm steps, taken for at most `seconds` or until stopped."""
    state = {name: value.clone() for name, value in stepper.task.state_dict().items()}
    step, times = stepper.clock.step, []
    started_at = last = time.perf_counter()
    for raw in batches:
        stepper.step(raw)
        now = time.perf_counter()
        times.append(now - last)
        last = now
        if stepper.world.any_rank(stopped() or (now - started_at > seconds and len(times) > 1)):
            break
    stepper.settle()
    stepper.task.load_state_dict(state)
    reset_state(stepper.optimizer)
    stepper.scaler, stepper.overflows = stepper.machine.scaler(), 0
    stepper.clock.step = step
    warm = sorted(times[1:] or times)
    return stepper.world.from_first(warm[len(warm) // 2])


def measure_step(stepper: Stepper, seconds: float) -> tuple[float, dict[str, Any]]:
    """Return the seconds of a warm step on samples in memory, taken for at most `seconds`, and a batch of them."""
    settings = stepper.settings
    batches = stepper.epoch_batches(0)[:2]
    raws = list(Loader(settings.source, 0, substitute=True)(batches, ReadSeed(settings.spec.seed, 0)))
    return rehearse_steps(stepper, cycle(raws), seconds), raws[0]


def rehearse_epochs(stepper: Stepper, negligible: float, most: int = 5) -> float:
    """Return the average seconds that `before_epoch` takes, the first epoch excepted.

    Epochs are prepared one after the other until one takes longer than `negligible` seconds; it stands for those before.
    """
    if type(stepper.task).before_epoch is PretextTask.before_epoch:
        return 0.0
    state, weights = {name: value.clone() for name, value in stepper.task.state_dict().items()}, stepper.weights
    average = 0.0
    for epoch in range(1, most + 1):
        started_at = time.perf_counter()
        stepper.before_epoch(epoch)
        seconds = stepper.world.from_first(time.perf_counter() - started_at)
        if seconds > negligible:
            average = seconds / epoch
            break
    stepper.task.load_state_dict(state)
    stepper.weights, stepper.clock.epoch = weights, 0
    return average


def estimate_steps(stepper: Stepper, loader: Loader, stop: StopSignal) -> TrainSpec:
    """Print how long the run will take, and whether that is too short; with `--minutes`, fix its number of steps.

    Returns the spec with that number.
    """
    spec, clock, settings = stepper.spec, stepper.clock, stepper.settings
    minutes = spec.minutes if spec.steps is None else None
    count = 22 if minutes else 2
    if clock.steps <= 10 * count and not minutes:
        say(f"  {'steps':<14} {clock.steps}")
        _warn_if_short(spec, clock.steps, None)
        return spec
    batches = stepper.epoch_batches(0)
    rows = [batch[stepper.world.share(spec.batch_size)] for batch in (batches * count)[:count]]
    patience = 6 * minutes if minutes else 5  # seconds: a tenth of the run at most
    say("  measuring how long a step takes")
    seconds = rehearse_steps(stepper, loader(rows, ReadSeed(spec.seed, 0)), patience, lambda: bool(stop.signal))
    if minutes:
        if minutes * 60 > seconds * settings.steps_per_epoch:  # there will be a second epoch
            seconds += rehearse_epochs(stepper, seconds) / settings.steps_per_epoch
        clock.steps = max(1, round(60 * minutes / seconds))
        spec = spec.model_copy(update={"steps": clock.steps})
    say(f"  {'steps':<14} {clock.steps:,} of {seconds:.2f} s: about {duration(clock.steps * seconds)}")
    _warn_if_short(spec, clock.steps, seconds)
    return spec


def _warn_if_short(spec: TrainSpec, steps: int, seconds: float | None) -> None:
    """Say so if pretraining ends before it has begun to learn, and what would be enough."""
    if not isinstance(spec, PretrainSpec) or steps >= FEW_STEPS:
        return
    enough = f"--steps {ENOUGH_STEPS}"
    if seconds is not None:
        flag = f"--minutes {math.ceil(ENOUGH_STEPS * seconds / 60)}" if spec.minutes else enough
        enough = f"{ENOUGH_STEPS} take about {duration(ENOUGH_STEPS * seconds)} ({flag})"
    say(f"  {steps} steps are too few to learn anything; {enough}", style="bold yellow")
