"""`sslkit preview`: what a task makes of images, before any training or as a checkpoint sees it."""

import dataclasses
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.task import Clock
from sslkit.engine.checkpoint import read_model
from sslkit.engine.job import TrainingJob, build_task
from sslkit.engine.pretrain import checked_options, prepare
from sslkit.engine.render import render_previews
from sslkit.engine.resume import load_state
from sslkit.engine.resume_file import read_resume
from sslkit.engine.run_folder import RESUME, read_spec
from sslkit.engine.stepper import Stepper
from sslkit.files import output_path, write_atomically
from sslkit.pictures import draw_previews
from sslkit.specs.look import PreviewSpec
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import load_task

_KEPT = ("data", "label", "seed", "device", "workers", "cache", "cache_limit", "reindex")  # of a preview's flags, for any run


_SHAPING = ("encoder", "encoder_option")  # what a checkpoint was trained with, and nobody can change


@dataclasses.dataclass(frozen=True)
class PreviewResult:
    """The result of `sslkit preview`."""

    path: str
    task: str
    trained: bool
    metrics: dict[str, float]  # of a trained task: its own metrics on the samples shown


def preview(spec: PreviewSpec) -> PreviewResult:
    """Show what a task sees and, with a checkpoint, what it predicts; implements `sslkit preview`.

    What a trained task says needs its head: it is in `resume.pt` beside the checkpoint. Raises SslkitError, before
    any data is read, for a path that can't be written and a checkpoint without its run.
    """

    out = output_path(spec.out, ".png")
    training = _training(spec)
    stepper = _stepper(training, spec)
    pictures, metrics = render_previews(stepper, spec.samples, trained=spec.ckpt is not None)
    if pictures is None:
        raise SslkitError(f"{training.name} has no preview", "it has no pictures of its samples")
    if not len(pictures):
        raise SslkitError(f"{training.name} shows none of {spec.samples} samples", "give more", flag="samples")
    with write_atomically(out) as stream:
        draw_previews(pictures[: spec.rows], stepper.task.preview_columns, stream)
    return PreviewResult(str(out), training.name, spec.ckpt is not None, metrics)


def _training(spec: PreviewSpec) -> TrainingJob:
    requested = {
        name: getattr(spec, name) for name in (*_KEPT, *_SHAPING) if name in spec.model_fields_set
    } | spec.data_values()
    if spec.ckpt is None:
        if spec.task is None:
            raise SslkitError("which task?", "sslkit preview TASK --data DIR, or --ckpt FILE")
        run = PretrainSpec(task=spec.task, options=spec.options, batch_size=2, **requested)
    else:
        run = _recorded(spec, requested)
    training = prepare(run, fits_size=False)
    settings = training.settings
    batch_size = min(spec.batch_size, settings.data.samples)  # which images are read at once, and nothing else
    return dataclasses.replace(
        training, settings=dataclasses.replace(settings, spec=settings.spec.model_copy(update={"batch_size": batch_size}))
    )


def _recorded(spec: PreviewSpec, requested: dict[str, Any]) -> PretrainSpec:
    """Return the spec of the run that a checkpoint lies in, on the data of the preview if it names some."""
    assert spec.ckpt is not None
    folder = Path(spec.ckpt).parent
    task = read_model(spec.ckpt).metadata["task"]
    try:
        run = PretrainSpec.model_validate(read_spec(folder))
    except ValidationError as error:
        raise SslkitError(f"{folder} holds no run of pretrain", "previews are of pretext tasks", flag="ckpt") from error
    if not (folder / RESUME).exists():
        raise SslkitError(f"no {RESUME} next to {spec.ckpt}", "previews need it because it contains the head", flag="ckpt")
    if spec.task is not None and spec.task not in (task, run.task):
        raise SslkitError(f"{spec.ckpt} was trained by {task}, not {spec.task}", "leave the task out", flag="ckpt")
    recorded = {**{name: getattr(run, name) for name in _SHAPING}, **run.data_values()}
    storage = {name: value for name, value in spec.data_values().items() if name not in spec.sample_values()}
    shaping = {name: value for name, value in requested.items() if name not in _KEPT and name not in storage}
    differing = [name for name, value in shaping.items() if value not in (recorded.get(name), "auto")]
    options = checked_options(run.model_copy(update={"options": spec.options}), load_task(run.task), folder)
    differing += [name for name, value in options.items() if run.options.get(name) != value]
    if differing:
        flags = ", ".join(map(flag_name, differing))
        raise SslkitError(f"{flags}: the run in {folder} has other values", "leave them out: a checkpoint has its own")
    kept = {name: requested[name] for name in requested if name in _KEPT}
    return run.updated({**kept, **storage, "batch_size": 2, "micro_batch": "auto"})


def _stepper(training: TrainingJob, spec: PreviewSpec) -> Stepper:
    """Return a stepper around the task: as its checkpoint left it, or as it begins."""
    run = training.settings.spec
    task = build_task(training, initialize=False)
    stepper = Stepper(task, training.settings, Clock(steps=run.steps or 1000))
    if spec.ckpt is None:
        stepper.before_epoch(0)
    else:
        folder = Path(spec.ckpt).parent
        state = read_resume(folder / RESUME, torch.device("cpu"))
        source = training.settings.source
        if ("data" not in spec.model_fields_set or "index" in task.needs) and state["data"] != source.training_fingerprint():
            raise SslkitError(
                f"{source.location} is not what the run in {folder} has seen",
                f"{training.name} knows its samples by their places" if "index" in task.needs else "--data names other images",
                flag="data",
            )
        hint = "did its code change?"
        if "data" in spec.model_fields_set:
            hint = (
                f"the {source.noun} of --data may differ in more than content from the run's; without --data its own are used"
            )
        load_state(stepper, state, folder, "ckpt", hint)
    return stepper
