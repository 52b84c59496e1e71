"""The loop: it reads in the order things happen."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from signal import SIGTERM

from sslkit.console import duration, say, show_progress
from sslkit.contract.errors import RunFailedError, RunInterruptedError
from sslkit.contract.source import ReadSeed
from sslkit.data.loader import Loader, epoch_batches
from sslkit.data.prefetch import prefetch
from sslkit.engine.collapse import Health
from sslkit.engine.memory import peak_memory
from sslkit.engine.profile import REST, WAITING, Profile, unmeasured
from sslkit.engine.run_folder import BROKEN, RunFolder
from sslkit.engine.settings import Settings
from sslkit.engine.signals import StopSignal
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import PretrainSpec

_LINES = 1000  # metrics.jsonl holds about as many


_COLD = 3  # steps of a process that do not count for its rate


_CHECKPOINT_SECONDS = 600


@dataclass
class Throughput:
    """Measure the training steps of this process: how fast, and how much of it is waiting for data."""

    images: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    cold_images: int = 0
    cold_seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    steps: int = 0
    summed: int = 0

    def add(self, images: int, seconds: float, waited: float, said: dict[str, float]) -> None:
        """Count a step."""
        self.steps += 1
        if self.steps > _COLD:
            self.images += images
            self.seconds += seconds
            self.waited += waited
        else:
            self.cold_images += images
            self.cold_seconds += seconds
        self.summed += 1
        for name, value in said.items():
            self.sums[name] += value

    def means(self) -> dict[str, float]:
        """Return the means of what was said since the last call."""
        means = {name: value / self.summed for name, value in self.sums.items()}
        self.sums.clear()
        self.summed = 0
        return means

    @property
    def rate(self) -> float:
        """Return images per second of the warm steps; of all while there are no warm ones; 0 before the first."""
        if self.seconds:
            return self.images / self.seconds
        return self.cold_images / self.cold_seconds if self.cold_seconds else 0.0


def train(
    stepper: Stepper,
    loader: Loader,
    folder: RunFolder,
    save: Callable[[], None],
    prepared: bool,
    stop: StopSignal,
    health: Health | None = None,
    draw: Callable[[], None] = lambda: None,
    began: float | None = None,
) -> Throughput:
    """Take the steps that are left and return the pace.

    `prepared` tells that `before_epoch` was called for the first of them already. Raises RunInterruptedError after a
    checkpoint when a signal came, and RunFailedError after one when features collapse and the run is to stop then, or when too
    many samples are broken. `draw` keeps pictures of what the task says, early, in the middle and at the end. `began` is
    when, by `time.monotonic`, the run would have begun without a break.
    """
    folder.started = True
    clock, plan, world, pace = stepper.clock, stepper.plan, stepper.world, Throughput()
    began = time.monotonic() if began is None else began
    profile = None
    if isinstance(plan.spec, PretrainSpec) and plan.spec.profile and world.first:
        profile = Profile(plan, plan.spec.profile, _COLD)
        stepper.enter = profile.enter
    broken: list[tuple[int, str]] = []
    met: set[int] = set()  # of broken samples
    every = max(1, (clock.steps - clock.began) // _LINES)
    saved = time.monotonic()
    with show_progress("training", clock.steps, done=clock.step) as progress:
        while clock.step < clock.steps:
            epoch, inside = divmod(clock.step, plan.steps_per_epoch)
            if inside == 0 and not prepared:
                stepper.before_epoch(epoch)
            prepared = False
            clock.epoch = epoch
            batches = epoch_batches(plan.data.samples, plan.spec.batch_size, plan.spec.seed, epoch, stepper.weights)
            own = [rows[world.own(len(rows))] for rows in batches[inside : inside + clock.steps - clock.step]]
            stepper.enter(WAITING)
            last = time.perf_counter()
            for raw in prefetch(loader(own, ReadSeed(plan.spec.seed, epoch)), plan.machine.device):
                arrived = time.perf_counter()
                stepper.enter(REST)
                broken += raw["broken"]
                said = stepper.step(raw)
                stepper.enter(REST)
                now = time.perf_counter()
                pace.add(plan.spec.batch_size, now - last, arrived - last, said)
                look, alarms = ({}, []) if health is None else health.after_step(said["loss"])
                if look or clock.step % every == 0 or clock.step == clock.steps:
                    rate = {"images_per_second": round(pace.rate, 1), "seconds": round(time.monotonic() - began, 3)}
                    peak = peak_memory(plan.machine.device)
                    rate |= {} if peak is None else {"memory": peak}
                    told = {"alarms": alarms} if alarms else {}
                    folder.log({**pace.means(), **rate, **look, **told, "epoch": epoch, "step": clock.step - 1})
                if clock.step in (clock.steps // 8, clock.steps // 2, clock.steps):
                    draw()
                for alarm in alarms:
                    say(f"health: {alarm}", style="bold yellow")
                if look and health is not None and world.any(health.stops and bool(alarms)):
                    save()
                    _quarantine(folder, stepper, broken)
                    raise RunFailedError(f"stopped after step {clock.step}: {'; '.join(alarms)}", "--on-collapse warn goes on")
                progress.advance(1, _text(said, pace, clock.steps - clock.step, plan.source.noun))
                if _due(plan.spec.checkpoint_every, clock.step, plan.steps_per_epoch, saved) and clock.step < clock.steps:
                    save()
                    saved = time.monotonic()
                if world.any(bool(stop.signal)):
                    save()
                    _quarantine(folder, stepper, broken)
                    raise RunInterruptedError(f"stopped after step {clock.step} of {clock.steps}", stop.signal or SIGTERM)
                if profile is not None and profile.after_step():
                    _finish(profile, stepper)
                    profile = None
                stepper.enter(WAITING)
                last = time.perf_counter()
            stepper.enter(REST)
            met |= _quarantine(folder, stepper, broken)
            broken.clear()
            if len(met) > plan.spec.max_broken * plan.data.samples:
                save()
                raise RunFailedError(too_many_unreadable(len(met), plan), "mend them, or raise --max-broken and --resume")
    save()
    if profile is not None:
        _finish(profile, stepper)
    return pace


def _finish(profile: Profile, stepper: Stepper) -> None:
    """Say what was measured, and measure no more."""
    stepper.enter(REST)
    stepper.enter = unmeasured
    profile.show()


def _due(every: int | None, step: int, steps_per_epoch: int, saved: float) -> bool:
    if every is not None:
        return step % every == 0
    return step % steps_per_epoch == 0 or time.monotonic() - saved > _CHECKPOINT_SECONDS


def _text(said: dict[str, float], pace: Throughput, left: int, called: str) -> str:
    if not pace.seconds:
        return f"loss {said['loss']:.3f}"
    time_left = duration(left * pace.seconds / (pace.steps - _COLD))
    waiting = f"waiting for data {pace.waited / pace.seconds:.0%}"
    return f"loss {said['loss']:.3f}  {pace.rate:,.0f} {called}/s  {waiting}  {time_left} left"


def too_many_unreadable(broken: int, plan: Settings, of: int | None = None) -> str:
    """Return what is said of too many broken samples."""
    called, share = plan.source.noun, plan.spec.max_broken
    return f"{broken:,} of {of or plan.data.samples:,} {called} cannot be read, more than --max-broken {share:g}"


def _quarantine(folder: RunFolder, stepper: Stepper, broken: list[tuple[int, str]]) -> set[int]:
    """Report what all processes met in an epoch, and return the rows."""
    source, found = stepper.plan.source, stepper.world.gather_lists(broken)
    new = folder.report_broken((source.name(row), reason) for row, reason in found)
    if new:
        called = source.noun.removesuffix("s") if new == 1 else source.noun
        say(f"{new} unreadable {called} met and left out, listed in {folder.file(BROKEN)}")
    return {row for row, _ in found}
