"""A session: one run of a task in one process, with everything that the loop needs."""

from collections.abc import Callable, Iterator
from signal import SIGTERM
from typing import Any

from sslkit.console import duration, say
from sslkit.contract.errors import RunFailedError, RunInterruptedError
from sslkit.contract.source import ReadSeed
from sslkit.data.loader import Loader
from sslkit.data.prefetch import prefetch
from sslkit.engine.cadence import Checkpoints, HealthChecks, HealthReport, Logs, Previews
from sslkit.engine.collapse import Health
from sslkit.engine.curves import describe_metrics
from sslkit.engine.loggers import Logger
from sslkit.engine.profile import REST, WAITING, Profile, unmeasured
from sslkit.engine.quarantine import Quarantine, too_many_unreadable
from sslkit.engine.run_folder import RunFolder
from sslkit.engine.signals import StopSignal
from sslkit.engine.stepper import SAVE, STOP, Stepper
from sslkit.engine.throughput import COLD_STEPS, Throughput
from sslkit.specs.train import PretrainSpec


class Session:
    """One training run: the stepper with the task, data, run folder, and what happens between steps.

    `epoch_prepared` is true while the epoch at hand needs no `before_epoch`: it has been called, or the run resumes inside it.
    """

    def __init__(
        self,
        stepper: Stepper,
        loader: Loader,
        folder: RunFolder,
        stop: StopSignal,
        *,
        loggers: list[Logger] | None = None,
        write_checkpoint: Callable[[dict[str, Any]], None] | None = None,
        epoch_prepared: bool = False,
    ) -> None:
        self.stepper, self.loader, self.folder, self.stop = stepper, loader, folder, stop
        stepper.stop = stop
        self.clock, self.settings, self.world = stepper.clock, stepper.settings, stepper.world
        self.epoch_prepared = epoch_prepared
        self.throughput = Throughput()
        self.checkpoints = Checkpoints(stepper, self._save)
        self._write_checkpoint = write_checkpoint
        self.logs = Logs(stepper, folder, loggers or [], self.throughput)
        self.previews = Previews(stepper, folder)
        self.health = HealthChecks(stepper, None)
        self.quarantine = Quarantine(self.settings, folder, self.world)
        self.profile: Profile | None = None

    def watch(self, monitor: Health | None) -> None:
        """Check the features with a monitor from now on."""
        self.health = HealthChecks(self.stepper, monitor)

    def start(self) -> None:
        """Begin training: from here on a failure is one of the run, and steps are profiled if `--profile` asks for it."""
        self.folder.started = True
        self.stepper.report = self._record
        spec = self.settings.spec
        if isinstance(spec, PretrainSpec) and spec.profile and self.world.first:
            self.profile = Profile(self.stepper.settings, spec.profile, COLD_STEPS)
            self.stepper.enter = self.profile.enter

    def begin_epoch(self) -> None:
        """Set the clock's epoch; at the start of an epoch, let the task prepare it."""
        epoch, steps_done = divmod(self.clock.step, self.settings.steps_per_epoch)
        if steps_done == 0 and not self.epoch_prepared:
            self.stepper.before_epoch(epoch)
        self.epoch_prepared = False
        self.clock.epoch = epoch

    def batches(self) -> Iterator[dict[str, Any]]:
        """Load this process's share of the batches that are left of the epoch, and measure how long each step waits."""
        spec, epoch = self.settings.spec, self.clock.epoch
        first = self.clock.step % self.settings.steps_per_epoch
        batches = self.stepper.epoch_batches(epoch)
        batches = batches[first : first + self.clock.steps - self.clock.step]
        rows = [batch[self.world.share(len(batch))] for batch in batches]
        self.stepper.enter(WAITING)
        self.throughput.start_step()
        for raw in prefetch(self.loader(rows, ReadSeed(spec.seed, epoch)), self.settings.machine.device):
            self.throughput.batch_arrived()
            self.stepper.enter(REST)
            self.quarantine.add(raw["broken"])
            yield raw
            self.stepper.enter(WAITING)
            self.throughput.start_step()
        self.stepper.enter(REST)
        self.answer_signals()  # one may have ended the wait for a batch

    def finish_step(self) -> None:
        """Count a step; where something is about to look at its results, when the device has taken it."""
        if self.health.due or self.previews.due or self.checkpoints.due:
            self.stepper.settle()
        self.throughput.finish_step(self.settings.spec.batch_size)

    def progress_texts(self) -> list[str]:
        """Return loss, the pretext question's metrics and speed for the line of progress."""
        pace, latest = self.throughput, self.logs.latest
        texts = [f"loss {latest['loss']:.3f}"] if latest else []
        texts += describe_metrics({name: latest[name] for name in self.logs.headlines if name in latest}, self.logs.chance)
        if pace.seconds:
            texts.append(f"{pace.rate:,.0f} {self.settings.source.noun}/s")
            texts.append(f"waiting for data {pace.waited / pace.seconds:.0%}")
        return texts

    def time_left(self) -> str:
        """Return the time left for the line of progress, nothing before the pace is known."""
        steps, pace = self.clock.steps - self.clock.step, self.throughput
        return f"{duration(steps * pace.seconds_per_step)} left" if steps and pace.seconds else ""

    def stop_if_collapsed(self, health: HealthReport) -> None:
        """Save and raise RunFailedError if the features have collapsed and `--on-collapse` is stop."""
        if health.stops:
            self._save_and_report()
            reason = f"stopped after step {self.clock.step}: {'; '.join(health.alarms)}"
            raise RunFailedError(reason, "--on-collapse warn continues")

    def answer_signals(self) -> None:
        """Save if any process was asked for a checkpoint; save and raise RunInterruptedError if any was asked to stop.

        Several processes learn it from the numbers that a step exchanges anyway.
        """
        if self.world.size == 1:
            stops, saves = self.stop.signal > 0, self.stop.checkpoint
        else:
            stops, saves = (name in self.stepper.requests for name in (STOP, SAVE))
        if stops:
            self._save_and_report()
            self.logs.close(failed=True)
            self.world.barrier()  # no process may leave, and end the others, before everything is written
            reason = f"stopped after step {self.clock.step} of {self.clock.steps}"
            raise RunInterruptedError(reason, self.stop.signal or SIGTERM)
        if saves:
            self.stepper.requests.discard(SAVE)
            self.stop.checkpoint = False
            by_signal = not self.checkpoints.requested
            self.checkpoints.save()
            if by_signal:
                say(f"checkpoint after step {self.clock.step}")

    def end_epoch(self) -> None:
        """List unreadable samples; save and raise RunFailedError if there are too many."""
        self.quarantine.report()
        if self.quarantine.exceeds_limit:
            self.checkpoints.save()
            raise RunFailedError(
                too_many_unreadable(len(self.quarantine.rows), self.settings),
                "fix the files, or rerun with --resume and a higher --max-broken",
            )

    def maybe_show_profile(self, finished: bool = False) -> None:
        """Print the profile once its steps are measured, or when training has finished."""
        if self.profile is not None and (finished or self.profile.after_step()):
            self.stepper.enter(REST)
            self.stepper.enter = unmeasured
            self.profile.show()
            self.profile = None

    def state(self) -> dict[str, Any]:
        """Return everything a resumed run needs: the stepper's state, the health monitor's, and the time taken so far."""
        monitor = self.health.monitor
        return {
            **self.stepper.state(),
            **({} if monitor is None else {"health": monitor.state()}),
            "seconds": self.logs.seconds,
            "processes": self.world.size,
        }

    def _record(self, step: int, metrics: dict[str, float]) -> None:
        self.logs.record(step, metrics)
        self.health.record(metrics["loss"])

    def _save(self) -> None:
        """Save what all steps so far have made: their numbers have been checked, and logged."""
        self.stepper.settle()
        self.logs.maybe_write(HealthReport())
        if self._write_checkpoint is not None:
            self._write_checkpoint(self.state())

    def _save_and_report(self) -> None:
        self.checkpoints.save()
        self.quarantine.report()
