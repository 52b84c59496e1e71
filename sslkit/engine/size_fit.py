"""`--size auto` on a CPU: the largest size whose training ends in the time that there is."""

import math
from collections.abc import Callable

from sslkit.console import duration, say, silence
from sslkit.contract.modality import Modality
from sslkit.contract.task import Clock, PretextTask
from sslkit.engine.job import TrainingJob, build_task
from sslkit.engine.parallel import World
from sslkit.engine.precision import choose_device
from sslkit.engine.rehearsal import measure_step
from sslkit.engine.settings import DEFAULT_EPOCHS
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import ENOUGH_STEPS, PretrainSpec

_ROWS, _SECONDS = 64, 3  # of a rehearsed step, and of all rehearsed steps of one size
_HOUR = 3600  # what a run without --minutes should take at most
_LONG_EPOCH = 20_000  # samples, from which a task that prepares every epoch takes too long to be rehearsed

Prepare = Callable[[PretrainSpec], TrainingJob]


def choose_size(spec: PretrainSpec, modality: Modality, prepare: Prepare, world: World) -> tuple[int, str] | None:
    """Return a smaller size than the data's, and the reason, if training at the data's takes too long on this CPU.

    Steps of few samples are rehearsed at two small sizes; what they take at others follows from the two. Several processes
    agree on the first one's choice.
    """
    if spec.sample_size(modality.name) is not None or not modality.sizes or choose_device(spec.device, world)[0].type != "cpu":
        return None
    with silence():  # it is opened again for the run
        source = modality.source.open(spec.updated({"cache": "off"}))
    samples, sizes = source.info.samples, [size for size in modality.sizes if size <= source.info.size]
    if len(sizes) < 2 or source.info.size <= modality.small_size or samples < spec.batch_size:
        return None
    rows = min(_ROWS, spec.batch_size, samples)
    probe = spec.updated({"cache": "off", "workers": 0, "batch_size": rows, "micro_batch": rows, "shard": False})
    measured = []
    say(f"measuring what size of {source.noun} this CPU can train")
    for size in sizes[:2]:
        with silence():
            seconds = _seconds_per_step(prepare(probe.updated(modality.options.of_size(size))))
        if seconds is None:
            return None
        measured.append(world.from_first(seconds * spec.batch_size / rows / world.size))
    power = max(2.0, math.log(measured[1] / measured[0]) / math.log(sizes[1] / sizes[0]))
    steps = spec.steps or (None if spec.minutes else _epochs(spec) * max(1, samples // spec.batch_size))
    return affordable_size({size: measured[0] * (size / sizes[0]) ** power for size in sizes}, steps, spec.minutes)


def affordable_size(seconds: dict[int, float], steps: int | None, minutes: float | None) -> tuple[int, str]:
    """Return the largest size that allows enough steps in `minutes`, or `steps` within an hour, and the reason.

    `seconds` is what a step takes at each size, in ascending order.
    """
    sizes = list(seconds)
    if steps is None:
        assert minutes is not None
        allowed = {size: max(1, int(60 * minutes / seconds[size])) for size in sizes}
        size = max((size for size in sizes if allowed[size] >= ENOUGH_STEPS), default=sizes[0])
        reason = f"about {allowed[size]:,} steps in {duration(60 * minutes)} on this CPU"
        larger = [f"{allowed[other]:,} at {other} px" for other in sizes if other > size]
    else:
        size = max((size for size in sizes if steps * seconds[size] <= _HOUR), default=sizes[0])
        reason = f"about {duration(steps * seconds[size])} on this CPU"
        larger = [f"{duration(steps * seconds[other])} at {other} px" for other in sizes if other > size]
    return size, "; ".join([reason, ", ".join(dict.fromkeys([*larger[:1], *larger[-1:]]))]) if larger else reason


def _epochs(spec: PretrainSpec) -> int:
    return DEFAULT_EPOCHS if spec.epochs == "auto" else spec.epochs


def _seconds_per_step(job: TrainingJob) -> float | None:
    """Return the seconds of a warm step; None if the task takes long to prepare an epoch."""
    stepper = Stepper(build_task(job, initialize=False), job.settings, Clock(steps=10**6))
    prepares = type(stepper.task).before_epoch is not PretextTask.before_epoch
    if prepares and job.settings.data.samples > _LONG_EPOCH:
        return None
    stepper.before_epoch(0)
    return measure_step(stepper, _SECONDS)[0]
