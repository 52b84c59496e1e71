"""From a training job to a finished run folder; `pretrain` and `finetune` both train here."""

import math
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

import numpy as np
import torch

from sslkit.console import say
from sslkit.contract.errors import RunInterruptedError, SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.data.decode import silence_decoders
from sslkit.data.loader import Loader, WorkerFailedError
from sslkit.engine.checkpoint_writer import CheckpointWriter
from sslkit.engine.collapse import Health
from sslkit.engine.compilation import adapt_compilation
from sslkit.engine.job import Outcome, TrainingJob, build_task
from sslkit.engine.loggers import build_loggers
from sslkit.engine.loop import train
from sslkit.engine.memory_fit import settle_micro_batch
from sslkit.engine.quarantine import too_many_unreadable
from sslkit.engine.rehearsal import estimate_steps
from sslkit.engine.resume import continue_hint, load_state, resume_clock
from sslkit.engine.resume_file import read_resume
from sslkit.engine.run_folder import METRICS, MODEL, RESUME, RunFolder, read_json_lines
from sslkit.engine.session import Session
from sslkit.engine.settings import Settings, show_settings
from sslkit.engine.signals import StopSignal, catch_stop_signals
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import PretrainSpec

_TRIED = 200  # samples that are read before the run


def run_training(job: TrainingJob) -> Outcome:
    """Build, train and save; resume if the spec asks for it and the folder holds a checkpoint.

    Several processes do the same, each on its share of every batch; the first one writes.
    """
    called_at = time.monotonic()
    settings, spec, world = job.settings, job.settings.spec, job.settings.machine.world
    fingerprint = settings.source.training_fingerprint()
    _check_readable(settings)
    loggers = build_loggers(spec.log, job.out) if world.first else []
    world.barrier()  # no process may look for a run in the folder after another has created it
    with RunFolder(job.out, world.first, removable=tuple(spec.log)) as folder:
        world.barrier()
        state = _read_state(job, folder, fingerprint)
        stepper = _build_stepper(job, folder, state)
        with catch_stop_signals() as stop, closing(_build_loader(settings, stop)) as loader:
            writer = CheckpointWriter(job, stepper, folder, fingerprint)
            session = Session(stepper, loader, folder, stop, loggers=loggers, write_checkpoint=writer.write)
            with session.logs:
                _prepare(job, session, writer, state)
                _train(job, session)
            logs = session.logs
        world.barrier()  # no process may leave, or read the results, before the checkpoint is written
        lines = read_json_lines(folder.file(METRICS))
    stepper.task.eval()
    return Outcome(
        run=job.out,
        task=stepper.task,
        steps=stepper.clock.step,
        samples_per_second=round(session.throughput.rate, 1),
        loss=float(lines[-1]["loss"]) if lines else None,
        metrics={name: lines[-1][name] for name in logs.headlines if lines and lines[-1].get(name) is not None},
        chance=logs.chance,
        seconds=round(time.monotonic() - called_at, 1),
    )


def _read_state(job: TrainingJob, folder: RunFolder, fingerprint: str) -> dict[str, Any] | None:
    """Return the state of the run in the folder, if there is one; all processes have to agree on it."""
    spec, world = job.settings.spec, job.settings.machine.world
    state = read_resume(folder.file(RESUME), torch.device("cpu")) if folder.file(RESUME).exists() else None
    if state is None and folder.file(MODEL).exists():
        raise SslkitError(
            f"{folder.path} has a model and no {RESUME}", "delete the folder, or give another --out", flag="resume"
        )
    if state is None and world.first and read_json_lines(folder.file(METRICS)):
        say(f"no checkpoint in {folder.path} yet: starting from step 0")
    if state is not None and state["data"] != fingerprint:
        raise SslkitError(
            f"{job.settings.source.location} is no longer the data of the run in {folder.path}",
            "check --data, and --cache if only one of the two is compact",
            flag="resume",
        )
    settings = spec.model_dump_json(exclude={"out", "data", "test", "init", "ckpt"})
    # The processes may be on machines with other files.
    if len(set(world.gather_lists([(fingerprint, settings, None if state is None else state["step"])]))) > 1:
        raise SslkitError(
            "the processes disagree about data, settings or checkpoint", "all machines need the same data and one --out folder"
        )
    return state


def _build_stepper(job: TrainingJob, folder: RunFolder, state: dict[str, Any] | None) -> Stepper:
    """Build the task and show the settings; put the state of a run that is resumed back."""
    spec, steps_per_epoch = job.settings.spec, job.settings.steps_per_epoch
    clock = resume_clock(spec, steps_per_epoch, state, folder.path)
    task = build_task(job, initialize=state is None)
    settings = adapt_compilation(job.settings, task)
    show_settings(settings, job.name, folder.path, whole=job.shows_settings)
    stepper = Stepper(task, settings, clock)
    if state is not None:
        load_state(stepper, state, folder.path)
        if spec.extend_to is not None and clock.step == clock.steps < spec.extend_to * steps_per_epoch:
            clock.schedule_start, clock.steps = clock.step, spec.extend_to * steps_per_epoch
        finished = clock.step == clock.steps
        say(f"  finished after step {clock.step}" if finished else f"  resuming after step {clock.step} of {clock.steps}")
        world = settings.machine.world
        if state.get("processes", world.size) != world.size:
            rule = f"--batch-size {spec.batch_size} and --lr {spec.lr:g} are totals over all processes and do not change"
            say(f"  {'processes':<14} {world.size} instead of {state['processes']}: {rule}")
    return stepper


def _prepare(job: TrainingJob, session: Session, writer: CheckpointWriter, state: dict[str, Any] | None) -> None:
    """Get a session ready for its first step: logs, the first epoch, the number of steps, the health monitor."""
    stepper, spec = session.stepper, writer.spec
    device = job.settings.machine.device
    writer.write_spec()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    if state is None:
        stepper.before_epoch(0)
        session.epoch_prepared = True
        if (reason := settle_micro_batch(stepper)) is not None:
            say(f"  {'micro-batch':<14} {stepper.spec.micro_batch}: {reason}")
        spec = writer.spec = estimate_steps(stepper, session.loader, session.stop)
        writer.write_spec()
    for name, reason in stepper.task.reasons().items():
        say(f"  {name.replace('_', '-'):<14} {reason}")
    if isinstance(spec, PretrainSpec) and spec.health_every != 0:
        with stepper.whole_weights():
            monitor = Health(stepper, spec, job.classify)
        if state is not None and state.get("health"):
            monitor.load_state(state["health"])
        session.watch(monitor)
    session.logs.rewind(stepper.clock.step)  # the settings are complete
    session.logs.started_at = time.monotonic() - (0.0 if state is None else state.get("seconds", 0.0))
    if state is None:
        session.previews.render()


def _train(job: TrainingJob, session: Session) -> None:
    try:
        train(session)
    except RunInterruptedError as interrupted:
        interrupted.hint = continue_hint(job.command, job.out, job.settings.spec.device, job.settings.machine.shard)
        raise
    except WorkerFailedError:  # between two steps
        if session.stepper.sharded is None:  # or the weights would have to be gathered from processes that are busy
            session.checkpoints.save()
        raise


def _build_loader(settings: Settings, stop: StopSignal) -> Loader:
    """Return the loader of the run's batches; raises SslkitError if its workers have too little shared memory."""
    # Several processes wait for each other in every step: one alone may not leave.
    stopped = (lambda: bool(stop.signal)) if settings.machine.world.size == 1 else (lambda: False)
    return Loader(settings.source, settings.workers, True, settings.machine.device.type == "cuda", stopped)


def _check_readable(settings: Settings) -> None:
    """Raise SslkitError if a few samples show that too many cannot be read; less clear cases show in the first epoch."""
    samples, limit = settings.data.samples, settings.spec.max_broken
    rows = np.random.default_rng(settings.spec.seed).permutation(samples)[:_TRIED]
    read_seed = ReadSeed(settings.spec.seed, 0)
    with silence_decoders(), ThreadPoolExecutor() as pool:  # decoders run in parallel
        reasons = list(pool.map(lambda row: settings.source.read(np.array([row]), read_seed)[1], rows))
    broken = [(settings.source.name(int(row)), reason[0]) for row, reason in zip(rows, reasons, strict=True) if reason]
    margin = 0.0 if len(rows) == samples else 3 * math.sqrt(limit * (1 - limit) / len(rows))
    if len(broken) > (limit + margin) * len(rows):
        examples = "; ".join(f"{name}: {reason}" for name, reason in broken[:3])
        raise SslkitError(too_many_unreadable(len(broken), settings, tried=len(rows)), examples, flag="data")
