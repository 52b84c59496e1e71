"""Run a task from a settled plan to a finished run folder; `pretrain` and `finetune` both come through here."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslkit.console import duration, say
from sslkit.contract.encoder import Encoder, over_views
from sslkit.contract.errors import RunInterruptedError, SslkitError
from sslkit.contract.options import path_options
from sslkit.contract.source import ReadSeed
from sslkit.contract.task import DataInfo, PretextTask
from sslkit.data.decode import silence_decoders
from sslkit.data.loader import Loader, WorkerFailedError, epoch_batches
from sslkit.encoders.build import check_requirements
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.checkpoint import describe, load_initial, save_model
from sslkit.engine.collapse import Health
from sslkit.engine.loop import too_many_unreadable, train
from sslkit.engine.parallel import World
from sslkit.engine.render import save_previews
from sslkit.engine.resume import load_state, resume_clock
from sslkit.engine.resume_file import read_resume, save_resume
from sslkit.engine.run_folder import MODEL, RESUME, RunFolder
from sslkit.engine.seeds import seed_stage
from sslkit.engine.settings import Settings, show_settings
from sslkit.engine.signals import StopSignal, catch_stop_signals
from sslkit.engine.stepper import Stepper
from sslkit.registry import load_modality
from sslkit.specs.train import PretrainSpec, TrainSpec

_TRIED = 200  # samples that are read before the run


@dataclass(frozen=True)
class Outcome:
    """Hold how a training run ended."""

    run: Path
    task: PretextTask
    steps: int
    images_per_second: float
    loss: float | None
    seconds: float

    @property
    def checkpoint(self) -> Path:
        """Return the path of the trained weights."""
        return self.run / MODEL


@dataclass(frozen=True)
class Session:
    """Hold what is needed to run a task."""

    name: str
    command: str  # what starts it: `pretrain rotation`
    plan: Settings
    out: Path
    build_encoder: Callable[[RecipeBuilder], Encoder]
    build_task: Callable[[Encoder, DataInfo], PretextTask]
    reads: dict[str, tuple[str, ...]]  # of the encoder, by task
    metadata: dict[str, Any]  # what the checkpoint says besides the encoder
    classify: Callable[[Encoder], float] | None = None  # k-NN accuracy while it runs


def run_training(training: Session) -> Outcome:
    """Build, train and save; resumes if the spec says so and the folder holds a checkpoint.

    Several processes do the same, each on its share of every batch; the first one writes.
    """
    began = time.monotonic()
    plan, spec, world = training.plan, training.plan.spec, training.plan.machine.world
    fingerprint = plan.source.fingerprint()
    _check_readable(plan)
    world.meet()  # nobody may look for a run in the folder after it was begun
    with RunFolder(training.out, world.first, board=world.first and spec.log == "tensorboard") as folder:
        world.meet()
        state = read_resume(folder.file(RESUME), torch.device("cpu")) if folder.file(RESUME).exists() else None
        if state is not None and state["data"] != fingerprint:
            raise SslkitError(
                f"{plan.source.location} is no longer the data of the run in {folder.path}", "check --data", flag="resume"
            )
        settings = spec.model_dump_json(exclude={"out", "data", "test", "init", "ckpt"})
        _agree(world, (fingerprint, settings, None if state is None else state["step"]))
        clock = resume_clock(spec, plan.steps_per_epoch, state, folder.path)
        task = build_task(training, initialize=state is None)
        show_settings(plan, training.name, folder.path)
        stepper = Stepper(task, plan, clock)
        if state is not None:
            load_state(stepper, state, folder.path)
            if spec.extend_to is not None and clock.step == clock.steps < spec.extend_to * plan.steps_per_epoch:
                clock.began, clock.steps = clock.step, spec.extend_to * plan.steps_per_epoch
            say(f"  resuming after step {clock.step} of {clock.steps}")
            if state.get("processes", world.size) != world.size:
                rule = f"--batch-size {spec.batch_size} and --lr {spec.lr:g} are those of all together, and stay"
                say(f"  {'processes':<14} {world.size} in place of {state['processes']}: {rule}")
        folder.rewind(clock.step)
        _write_spec(folder, spec, plan.data.modality)
        loader = Loader(plan.source, plan.workers, substitute=True, pin_memory=plan.machine.device.type == "cuda")
        if plan.machine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(plan.machine.device)
        with catch_stop_signals() as stop:
            if state is None:
                stepper.before_epoch(0)
                spec = _measure(stepper, loader, stop)
                _write_spec(folder, spec, plan.data.modality)
            for name, reason in task.reasons().items():
                say(f"  {name.replace('_', '-'):<14} {reason}")

            health = None
            if isinstance(spec, PretrainSpec) and spec.health_every != 0:
                health = Health(stepper, spec, training.classify)
                if state is not None and state.get("health"):
                    health.load_state(state["health"])

            trained = time.monotonic() - (0.0 if state is None else state.get("seconds", 0.0))  # since then, without a break

            def save() -> None:
                if not world.first:
                    return
                watched: dict[str, Any] = {} if health is None else {"health": health.state()}
                watched |= {"seconds": time.monotonic() - trained, "processes": world.size}
                stepper.check_state()
                with folder.writing():
                    save_resume(folder.file(RESUME), {**stepper.state(), "data": fingerprint, **watched})
                    save_model(folder.file(MODEL), task.exports(), _metadata(training, spec, stepper))

            def draw() -> None:
                if world.first and isinstance(spec, PretrainSpec):
                    save_previews(stepper, folder)

            if state is None:
                draw()
            try:
                fresh = state is None
                pace = train(stepper, loader, folder, save, fresh, stop=stop, health=health, draw=draw, began=trained)
            except RunInterruptedError as stopped:
                stopped.hint = f"go on with: sslkit {training.command} --resume --out {folder.path}"
                raise
            except WorkerFailedError:  # between two steps
                save()
                raise
            finally:
                loader.close()
        world.meet()  # nobody may leave, or read what was written, before the checkpoint is there
        loss = folder.last_loss()
    task.eval()
    return Outcome(training.out, task, clock.step, round(pace.rate, 1), loss, round(time.monotonic() - began, 1))


def _check_readable(plan: Settings) -> None:
    """Raise SslkitError if, by a few samples, too many can't be read; what is less clear shows in the first epoch."""
    samples, most = plan.data.samples, plan.spec.max_broken
    rows, draw = np.random.default_rng(plan.spec.seed).permutation(samples)[:_TRIED], ReadSeed(plan.spec.seed, 0)
    with silence_decoders(), ThreadPoolExecutor() as pool:  # decoders work side by side
        found = list(pool.map(lambda row: plan.source.read(np.array([row]), draw)[1], rows))
    broken = [(plan.source.name(int(row)), reasons[0]) for row, reasons in zip(rows, found, strict=True) if reasons]
    doubt = 0.0 if len(rows) == samples else 3 * math.sqrt(most * (1 - most) / len(rows))
    if len(broken) > (most + doubt) * len(rows):
        said = "; ".join(f"{name}: {reason}" for name, reason in broken[:3])
        raise SslkitError(f"{too_many_unreadable(len(broken), plan, of=len(rows))}", said, flag="data")


def _agree(world: World, told: tuple[Any, ...]) -> None:
    """Check that all processes would do the same: they may be on machines with other files."""
    if len(set(world.gather_lists([told]))) > 1:
        raise SslkitError(
            "the processes disagree about data, settings or checkpoint", "all machines need the same data and one --out folder"
        )


def build_task(training: Session, initialize: bool) -> PretextTask:
    """Build encoder and task under the seed; pretrained and `--init` weights only where a run begins."""
    plan, spec = training.plan, training.plan.spec

    build = RecipeBuilder(plan.recipe, plan.data, pretrained=spec.pretrained and initialize, allowed=spec.encoder)
    seed_stage(spec.seed, "build", 0)
    encoder = training.build_encoder(build)
    if spec.init is not None and initialize:
        load_initial(encoder, spec.init)
    for name, reads in training.reads.items():
        check_requirements(encoder, spec.encoder, reads, name, load_modality(plan.data.modality))
    if spec.activation_checkpointing and not encoder.checkpoint_activations():
        raise SslkitError(
            f"{spec.encoder} cannot",
            "timm build without BatchNorm can; --micro-batch saves memory too",
            flag="activation_checkpointing",
        )
    _try(encoder, plan)
    return training.build_task(encoder, plan.data)


@torch.no_grad()
def _try(encoder: Encoder, plan: Settings) -> None:
    """Run two samples through the encoder: better now than in the first step."""
    source = plan.source
    arrays, _ = source.read(np.array([0, 1]))
    view = source.view(source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()}))
    try:
        encoder.eval()
        over_views(lambda one: {"": encoder(one)}, encoder.sample_dims, view)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise SslkitError(f"{plan.spec.encoder} cannot take samples of size {plan.data.size}: {reason}", flag="size") from error


def _measure(stepper: Stepper, loader: Loader, stop: StopSignal) -> TrainSpec:
    """Say how long the run will take; with `--minutes`, fix its steps. Returns the spec with them."""
    spec, clock, plan = stepper.spec, stepper.clock, stepper.plan
    minutes = spec.minutes if spec.steps is None else None
    count = 22 if minutes else 2
    if clock.steps <= 10 * count and not minutes:
        say(f"  {'steps':<14} {clock.steps}")
        return spec
    batches = epoch_batches(plan.data.samples, spec.batch_size, spec.seed, 0, stepper.weights)
    own = [rows[stepper.world.own(spec.batch_size)] for rows in (batches * count)[:count]]
    patience = 6 * minutes if minutes else 5  # seconds: a tenth of the run at most
    say("  measuring how long a step takes")
    seconds = stepper.rehearse(loader(own, ReadSeed(spec.seed, 0)), patience, lambda: bool(stop.signal))
    if minutes:
        if minutes * 60 > seconds * plan.steps_per_epoch:  # there will be a second epoch
            seconds += stepper.rehearse_epochs(seconds) / plan.steps_per_epoch
        clock.steps = max(1, round(60 * minutes / seconds))
        spec = spec.model_copy(update={"steps": clock.steps})
    say(f"  {'steps':<14} {clock.steps:,} of {seconds:.2f} s: about {duration(clock.steps * seconds)}")
    return spec


def _write_spec(folder: RunFolder, spec: TrainSpec, modality: str) -> None:
    folder.write_spec(spec.model_dump(mode="json", exclude={"out", "resume"} | spec.other_tables(modality)))


def _metadata(training: Session, spec: TrainSpec, stepper: Stepper) -> dict[str, Any]:
    clock, exported = stepper.clock, stepper.task.exports()
    others = {name: module for name, module in exported.items() if name != "encoder"}
    hidden = {"out", "resume", "data", "test", "init", "ckpt", "task"}  # paths of somebody's machine
    said = spec.model_dump(mode="json", exclude=hidden | spec.other_tables(stepper.plan.data.modality))
    if isinstance(spec, PretrainSpec):
        paths = path_options(type(stepper.task.options))
        said["options"] = {name: value for name, value in spec.options.items() if name not in paths}
    return {
        **describe(stepper.task.encoder),
        "parts": {name: module.recipe for name, module in others.items() if isinstance(module, Encoder)},
        "samples": load_modality(stepper.plan.data.modality).evaluated_as,
        "task": training.name,
        "role": "student" if exported["encoder"] is stepper.task.encoder else "teacher",
        "spec": said,
        "size": stepper.plan.data.size,
        "data": stepper.plan.source.evaluation_fingerprint(),
        "step": clock.step,
        "steps": clock.steps,
        "extended_from": clock.began,
        **training.metadata,
    }
