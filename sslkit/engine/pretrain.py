"""`sslkit pretrain`: a task, unlabeled data, a run folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from sslkit import registry
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.modality import Modality
from sslkit.contract.options import path_options
from sslkit.contract.task import TARGETS, PretextTask
from sslkit.data.locations import absolute_data, check_apart
from sslkit.encoders.build import build_encoder, check_requirements
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.initial import resolve_start
from sslkit.engine.job import Outcome, TrainingJob
from sslkit.engine.labels import reveal_labels
from sslkit.engine.launch import run_on_devices
from sslkit.engine.loggers import load_loggers
from sslkit.engine.parallel import ALONE, World
from sslkit.engine.resume import merge_recorded
from sslkit.engine.run_folder import choose_out, holds_run, read_spec
from sslkit.engine.settings import resolve_settings
from sslkit.engine.size_fit import choose_size
from sslkit.engine.training import run_training
from sslkit.evaluation.online_knn import OnlineKnn
from sslkit.registry import load_modality
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.joint import requirements
from sslkit.tasks.load import absolute, load_task, task_name
from sslkit.tasks.recipes import with_task_settings


@dataclass(frozen=True)
class PretrainResult:
    """The result of `sslkit pretrain`: `metrics` answer the pretext question, and a guess reaches `chance`."""

    run: str
    checkpoint: str
    steps: int
    samples_per_second: float
    loss: float | None
    metrics: dict[str, float]
    chance: dict[str, float]
    seconds: float

    @classmethod
    def of(cls, outcome: Outcome) -> "PretrainResult":
        """Return the result of an outcome."""
        return cls(
            run=str(outcome.run),
            checkpoint=str(outcome.checkpoint),
            steps=outcome.steps,
            samples_per_second=outcome.samples_per_second,
            loss=outcome.loss,
            metrics=outcome.metrics,
            chance=outcome.chance,
            seconds=outcome.seconds,
        )


def pretrain(spec: PretrainSpec) -> PretrainResult:
    """Pretrain an encoder and return where it is; everything `sslkit pretrain` does.

    Raises SslkitError for what can be told before the first step, RunFailedError if the run fails, RunInterruptedError if
    a signal ended it after a checkpoint.
    """
    return run_on_devices("pretrain", spec, _pretrain, lambda values: PretrainResult(**values))


def _pretrain(spec: PretrainSpec, world: World) -> PretrainResult:
    return PretrainResult.of(run_training(prepare(spec, world)))


def prepare(spec: PretrainSpec, world: World = ALONE, fits_size: bool = True) -> TrainingJob:
    """Settle everything about a run without starting it: task, options, data, `auto` values.

    Unless `fits_size`, for callers that do not train, `--size auto` is the data's on a CPU, too.
    """
    task_class = load_task(spec.task)
    name = task_name(spec.task)
    load_loggers(spec.log)
    continues = spec.resume or spec.extend_to is not None
    out = choose_out(spec.out, name, continues)
    spec = spec.model_copy(update=_absolute(spec))
    spec = spec.model_copy(update={"options": checked_options(spec, task_class, out if continues else None)})
    if continues and holds_run(out):
        merged = merge_recorded(spec, out)
        assert isinstance(merged, PretrainSpec)
        spec = merged
    else:
        spec = with_task_settings(spec, task_class)
    options = task_class.Options.model_validate(spec.options)
    spec = spec.model_copy(update={"options": options.model_dump(mode="json")})
    _check_task(task_class, name)
    modality = load_modality(task_class.modality)
    if task_class.encodes not in modality.encodes:
        known = " and ".join(modality.encodes)
        raise SslkitError(f"{name} encodes {task_class.encodes!r}, and {modality.name} data is for encoders of {known}")
    spec.check_modality(modality.name)
    if spec.data is None:
        if continues:
            raise SslkitError(f"there is no run in {out}", "check --out, or start one with --data", flag="resume")
        raise SslkitError("missing", f"give {modality.options.accepts}", flag="data")
    check_apart(spec.data, out)
    _check_encoder(spec, task_class, name)
    fitting = choose_size(spec, modality, prepare, world) if fits_size else None
    if fitting is not None:
        spec = spec.updated(modality.options.of_size(fitting[0]))
    _check_starts(spec, modality)
    source = modality.source.open(spec)
    spec, label_reasons, label_metadata = reveal_labels(source, spec, task_class, name)
    missing = [entry for entry in task_class.needs if entry in TARGETS and entry not in source.on_request]
    if missing:
        raise SslkitError(f"{name} needs {missing[0]}", "say where masks or boxes are", flag="targets")
    for entry, flag in source.on_request.items():
        if not any(source.on_request.get(need) == flag for need in task_class.needs):
            raise SslkitError(f"{name} uses no {entry}", "leave it out", flag=flag)
    classify = None
    if spec.online_knn:
        if spec.health_every == 0:
            raise SslkitError(
                "k-NN accuracy is logged with feature health", "leave one of them out", flag=("online_knn", "health_every")
            )
        resolved = {name: value for name, (value, _) in source.resolved.items() if name != "cache"}
        classify = OnlineKnn(spec.updated(resolved), modality.evaluated_as)
    settings = resolve_settings(spec, source, task_class.encodes, task_class.requires, world)
    settings.reasons.update(label_reasons)
    if fitting is not None:
        settings.reasons["size"] = f"{fitting[0]}: {fitting[1]}"
    return TrainingJob(
        name=name,
        command=f"pretrain {spec.task}",
        settings=settings,
        out=out,
        build_encoder=lambda build: task_class.build_encoder(options, build),
        build_task=lambda encoder, data: task_class(options, encoder, data),
        requires=requirements(task_class, name),
        metadata=label_metadata,
        classify=classify,
    )


def checked_options(spec: PretrainSpec, task_class: type[PretextTask], run: Path | None) -> dict[str, Any]:
    """Return the given options as they are recorded: validated, beside those of a run that goes on, and paths absolute."""
    recorded = read_spec(run).get("options", {}) if run is not None and holds_run(run) else {}
    try:
        options = task_class.Options.model_validate({**recorded, **spec.options})
    except ValidationError as error:
        places = [str(problem["loc"][0]) for problem in error.errors() if problem["loc"]]
        altered = [name for name in places if name in recorded and name not in spec.options]
        if not altered:
            raise
        problem = (
            f"the run in {run} has {flag_name(altered[0])} {recorded[altered[0]]}, which {task_name(spec.task)} does not take"
        )
        raise SslkitError(problem, "another version of sslkit wrote it, or it was altered") from error
    values = options.model_dump(mode="json")
    paths = {name: getattr(options, name) for name in path_options(task_class.Options)}
    values |= {name: str(path.resolve()) for name, path in paths.items() if path is not None}
    return {name: values[name] for name in spec.options}


def _absolute(spec: PretrainSpec) -> dict[str, Any]:
    """Return the spec's paths made absolute, since a run may later be read from another folder."""
    paths: dict[str, Any] = {"task": absolute(spec.task)}
    if spec.data is not None:
        paths["data"] = absolute_data(spec.data)
    if spec.init is not None:
        paths["init"] = resolve_start(spec.init)
    if spec.init_part:
        paths["init_part"] = {part: str(Path(file).resolve()) for part, file in spec.init_part.items()}
    return paths


def _check_starts(spec: PretrainSpec, modality: Modality) -> None:
    """Raise SslkitError for a part that `--init-part` names and that no checkpoint can start."""
    for part in spec.init_part.keys() - set(modality.source.starting_parts):
        known = ", ".join(f"{name}=FILE" for name in modality.source.starting_parts)
        problem = f"{part}={spec.init_part[part]} names no part that a run on {modality.name} data can start"
        raise SslkitError(problem, f"use {known}" if known else "the encoder starts from --init", flag="init_part")


def _check_task(task_class: type[PretextTask], name: str) -> None:
    """Raise SslkitError for a task that lacks a part which has no default."""
    missing = [part for part in ("transform", "loss") if getattr(task_class, part) is getattr(PretextTask, part)]
    if missing:
        raise SslkitError(f"{name} does not define {missing[0]}()", "docs/writing-a-task.md describes the parts of a task")


def _check_encoder(spec: PretrainSpec, task_class: type[PretextTask], name: str) -> None:
    """Fail before any data is touched if the encoder can't be built or lacks what the task requires."""
    modality = load_modality(task_class.encodes)
    if spec.encoder == "auto" or modality.encoder_channels is None:
        return
    # A factory of the user's may need memory or the true size: it is tried when both are there.
    if ":" in spec.encoder and spec.encoder.partition(":")[0] not in registry.names(registry.LIBRARIES):
        return
    size = spec.sample_size(task_class.modality) or modality.encoder_size
    with torch.device("meta"):
        recipe = recipe_for(spec.encoder, size, modality.encoder_channels, spec.encoder_option)
        encoder = build_encoder(recipe, allowed=spec.encoder)
    for task, requires in requirements(task_class, name).items():
        check_requirements(encoder, spec.encoder, requires, task, modality)
