"""What happens between steps: checkpoints, logs, previews and health checks, each on a schedule of its own."""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

from sslkit.console import say
from sslkit.engine.collapse import Health
from sslkit.engine.loggers import Logger
from sslkit.engine.memory import peak_memory
from sslkit.engine.render import save_previews
from sslkit.engine.run_folder import TRAINING, RunFolder
from sslkit.engine.stepper import Stepper
from sslkit.engine.throughput import Throughput
from sslkit.specs.train import PretrainSpec

_LINES = 1000  # metrics.jsonl has about as many

_CHECKPOINT_SECONDS = 600


class Checkpoints:
    """Save checkpoints: every `--checkpoint-every` steps, or every epoch and at least every ten minutes."""

    def __init__(self, stepper: Stepper, write: Callable[[], None]) -> None:
        self.stepper, self._write = stepper, write
        self._saved_at = time.monotonic()
        self.requested = False  # by the clock, from all processes

    def save(self) -> None:
        """Save a checkpoint now."""
        self._write()
        self.requested, self._saved_at = False, time.monotonic()

    @property
    def due(self) -> bool:
        """Return whether the schedule has a checkpoint after this step."""
        spec, clock = self.stepper.spec, self.stepper.clock
        return clock.step % (spec.checkpoint_every or self.stepper.settings.steps_per_epoch) == 0

    def maybe_save(self) -> None:
        """Save a checkpoint if one is due; the last one is saved when training ends."""
        due = self.due
        if self.stepper.spec.checkpoint_every is None and time.monotonic() - self._saved_at > _CHECKPOINT_SECONDS:
            if self.stepper.world.size == 1:
                due = True
            elif self.stepper.world.first and not self.requested:
                # Clocks differ: the first process asks, as a signal does, and all save after the same step.
                self.stepper.stop.checkpoint = self.requested = True
        if due and self.stepper.clock.step < self.stepper.clock.steps:
            self.save()


@dataclass(frozen=True)
class HealthReport:
    """Feature metrics of a health check, and alarms that are new; both are empty between checks."""

    metrics: dict[str, float] = field(default_factory=dict)
    alarms: list[str] = field(default_factory=list)
    stops: bool = False  # in any process: `--on-collapse stop`


class HealthChecks:
    """Check the features on the schedule of `--health-every`; without a monitor there are no checks."""

    def __init__(self, stepper: Stepper, monitor: Health | None) -> None:
        self.stepper, self.world, self.monitor = stepper, stepper.world, monitor

    def record(self, loss: float) -> None:
        """Note the loss of a step."""
        if self.monitor is not None:
            self.monitor.losses.append(loss)

    @property
    def due(self) -> bool:
        """Return whether the features are to be checked after this step."""
        return self.monitor is not None and self.monitor.due

    def maybe_check(self) -> HealthReport:
        """Check the features if a check is due; the numbers of all steps are known then."""
        if self.monitor is None or not self.monitor.due:
            return HealthReport()
        self.stepper.settle()
        with self.stepper.whole_weights():
            metrics, alarms = self.monitor.check()
        for alarm in alarms:
            say(f"health: {alarm}", style="bold yellow")
        return HealthReport(metrics, alarms, self.world.any_rank(self.monitor.stops and bool(alarms)))


class Logs:
    """Write metrics to the loggers: about a thousand lines per run, and one for every health check.

    A line has the means of the metrics since the line before. It is written once the numbers of its step are known.
    """

    def __init__(self, stepper: Stepper, folder: RunFolder, loggers: list[Logger], throughput: Throughput) -> None:
        self.stepper, self.folder, self.loggers, self.throughput = stepper, folder, loggers, throughput
        self.started_at = time.monotonic()  # earlier for a resumed run, as if it had never been interrupted
        self.chance = stepper.task.chance()
        self.latest: dict[str, float] = {}  # metrics of the last step whose numbers are known
        self._step = self._steps = 0  # that step, and the steps whose metrics are in the sums
        self._sums: dict[str, float] = defaultdict(float)
        self._described = False

    @property
    def seconds(self) -> float:
        """Return the seconds that the run has taken, pauses before a resume excluded."""
        return time.monotonic() - self.started_at

    @property
    def headlines(self) -> tuple[str, ...]:
        """Return the metrics that answer the pretext question: those with a chance level, or else the task's first."""
        return tuple(self.chance) or self.stepper.metric_names[:1]

    def rewind(self, step: int) -> None:
        """Open the loggers, and drop what was logged from `step` on."""
        with self.folder.writing():
            for logger in self.loggers:
                logger.rewind(step)

    def record(self, step: int, metrics: dict[str, float]) -> None:
        """Note the metrics of a step."""
        self.latest, self._step = metrics, step
        self._steps += 1
        for name, value in metrics.items():
            self._sums[name] += value

    def maybe_write(self, health: HealthReport) -> None:
        """Write a line for the last step whose numbers are known, if one is due and not written yet."""
        clock, step = self.stepper.clock, self._step
        every = max(1, (clock.steps - clock.schedule_start) // _LINES)
        if not self._steps or (not health.metrics and step % every and step != clock.steps):
            return
        peak = peak_memory(self.stepper.machine.device)
        means = {name: value / self._steps for name, value in self._sums.items()}
        self._sums.clear()
        self._steps = 0
        line = {
            **means,
            "samples_per_second": round(self.throughput.rate, 1),
            "seconds": round(self.seconds, 3),
            **({} if peak is None else {"memory": peak}),
            **health.metrics,
            **({"alarms": health.alarms} if health.alarms else {}),
            "epoch": (step - 1) // self.stepper.settings.steps_per_epoch,
            "step": step - 1,
        }
        if not self._described:  # the terms are known after a step, and the end of a run that was extended is a new one
            terms = list(self.stepper.loss_terms)
            self.folder.write_json(TRAINING, {"steps": clock.steps, "loss_terms": terms, "chance": self.chance})
            self._described = True
        with self.folder.writing():
            for logger in self.loggers:
                logger.log(line)

    def close(self, failed: bool) -> None:
        """Close the loggers, unless they are closed."""
        while self.loggers:
            self.loggers.pop().close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(failed=kind is not None)


class Previews:
    """Save pictures of the task's predictions before, early in, in the middle of and after pretraining."""

    def __init__(self, stepper: Stepper, folder: RunFolder) -> None:
        self.stepper, self.folder = stepper, folder

    @property
    def due(self) -> bool:
        """Return whether pictures are to be saved after this step."""
        clock = self.stepper.clock
        return clock.step in (clock.steps // 8, clock.steps // 2, clock.steps)

    def maybe_render(self) -> None:
        """Save pictures if some are due."""
        if self.due:
            self.render()

    def render(self) -> None:
        """Save pictures now; the first process does, and for pretext tasks only."""
        with self.stepper.whole_weights():
            if self.folder.writes and isinstance(self.stepper.spec, PretrainSpec):
                save_previews(self.stepper, self.folder)
