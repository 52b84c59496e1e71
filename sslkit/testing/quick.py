"""The quick checks, which take seconds."""

import io
import json
import random
import tempfile
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from pydantic import ValidationError
from torch import Tensor, nn

from sslkit.contract.encoder import over_views
from sslkit.contract.errors import SslkitError
from sslkit.contract.options import alternatives, limits
from sslkit.contract.task import ON_REQUEST, PretextTask
from sslkit.engine.checkpoint import describe, load, save_model
from sslkit.engine.micro_batches import as_dict, named_terms, norm_buffers, total_loss, widen
from sslkit.engine.render import render_previews
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import to_device
from sslkit.pictures import draw_previews
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import RUN_FLAGS
from sslkit.tasks.recipes import with_task_settings
from sslkit.testing.bench import SAMPLES, Bench, ContractViolationError, first_difference
from sslkit.testing.leaks import find_leak
from sslkit.testing.synchronization import find_synchronization


def _options(bench: Bench) -> None:
    examples = bench.options().model_dump()  # fails if an option has neither a default nor an example
    _check_settings(bench.task_class, examples)
    run_flags = RUN_FLAGS | {"spec", "dry_run", "json", "traceback"}
    for name, field in bench.task_class.Options.model_fields.items():
        if name in run_flags:
            raise ContractViolationError(f"option {name} shadows the run flag of that name")
        if not field.description:
            raise ContractViolationError(f"option {name} has no description")
        number = {int, float} & set(alternatives(field.annotation))
        if number and not any(isinstance(limit, Ge | Gt | Le | Lt) for limit in limits(field)):
            raise ContractViolationError(f"option {name} is a number without a bound")


def _check_settings(task_class: type[PretextTask], examples: dict[str, Any]) -> None:
    """Raise ContractViolationError if `defaults` or `paper` hold a setting that is none, or is not of the task's data."""
    for name, recipe in (("defaults", "default"), *([("paper", "paper")] if task_class.paper is not None else [])):
        try:
            spec = with_task_settings(PretrainSpec.model_validate({"task": "check", "data": "x", "recipe": recipe}), task_class)
            spec.check_modality(task_class.modality)
            task_class.Options.model_validate(examples | spec.options)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ContractViolationError(f"{name} cannot set {where} to {first['input']!r}: {first['msg']}") from error
        except SslkitError as error:
            raise ContractViolationError(f"{name}: {error}") from error


def _samples_first(bench: Bench) -> None:
    stepper = bench.stepper()
    batch = bench.transformed(stepper)
    for where, values in (("transform", batch), ("predict", as_dict(stepper.task.predict(batch)))):
        for name, value in values.items():
            if isinstance(value, list):
                raise ContractViolationError(f"{where} returns a list as {name}")
            if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != SAMPLES):
                shape = tuple(value.shape)
                raise ContractViolationError(f"{where} returns {name or 'a tensor'} of shape {shape} for {SAMPLES} samples")
    for variable in ("encoder_inputs", "visible_targets"):
        unknown = sorted(set(getattr(stepper.task, variable)) - batch.keys())
        if unknown:
            raise ContractViolationError(f"{variable} names {unknown[0]}, which transform does not return")


def _labels(bench: Bench) -> None:
    stepper = bench.stepper()
    task = stepper.task
    if "label" in task.needs:
        return
    prepared = bench.prepared(stepper)
    batches = []
    for shift in range(2):
        seed_stage(0, "transform", 0)
        batches.append(task.transform({**prepared, "label": (torch.arange(SAMPLES) + shift) % 3}))
    for name, value in batches[0].items():
        if name not in ON_REQUEST and isinstance(value, Tensor) and not torch.equal(value, batches[1][name]):
            raise ContractViolationError(f"{name} depends on `label`, which `needs` does not name")


def _pure(bench: Bench) -> None:
    stepper = bench.stepper()
    batch = bench.transformed(stepper)
    norms = {id(buffer) for buffer in norm_buffers(stepper.task)}
    before = {name: value.clone() for name, value in stepper.task.state_dict(keep_vars=True).items()}
    outputs = []
    for _ in range(2):
        seed_stage(0, "predict", 0)
        outputs.append(as_dict(stepper.task.predict(batch)))
    for name, value in stepper.task.state_dict(keep_vars=True).items():
        if id(value) not in norms and not torch.equal(value, before[name]):
            raise ContractViolationError(f"predict changes {name}")
    for name, value in outputs[0].items():
        if not torch.equal(value, outputs[1][name]):
            raise ContractViolationError(f"two calls of predict with one seed differ in {name or 'their output'}")


def _leaks(bench: Bench) -> None:
    stepper = bench.stepper()
    problem = find_leak(
        stepper.task, bench.prepared(stepper), lambda prepared, draw: bench.transform(stepper, prepared, rank=draw)
    )
    if problem:
        raise ContractViolationError(problem)


def _draws(bench: Bench) -> None:
    """Compare two transforms under one seed of torch's; others are seeded only to tell whose draws differ."""
    stepper = bench.stepper()
    first, second = bench.transformed(stepper), bench.transformed(stepper)
    differing = first_difference(first, second)
    if differing is None:
        return
    repeated = []
    for _ in range(2):
        random.seed(0)
        np.random.seed(0)
        repeated.append(bench.transformed(stepper))
    if first_difference(*repeated) is None:
        raise ContractViolationError(f"{differing} is drawn with Python's or NumPy's generator: draw with torch")
    raise ContractViolationError(f"two transforms with one seed differ in {differing}")


def _finite(bench: Bench) -> None:
    for precision in ("fp32", "bf16"):
        stepper = bench.stepper(precision)
        stepper.step(bench.raw(stepper))
        metrics = stepper.settle()
        if not all(np.isfinite(list(metrics.values()))):
            raise ContractViolationError(f"{metrics} in {precision}")
        unknown = sorted(stepper.task.chance().keys() - {*stepper.metric_names, *stepper.loss_terms})
        if unknown:
            raise ContractViolationError(f"chance names {unknown[0]}, which neither metrics nor loss returns")


def _no_waiting(bench: Bench) -> None:
    stepper = bench.stepper()
    problem = find_synchronization(stepper.task, stepper.settings.source, bench.raw(stepper))
    if problem:
        raise ContractViolationError(problem)


def _gradient(bench: Bench) -> None:
    stepper = bench.stepper()
    task, batch = stepper.task, bench.transformed(stepper)
    total_loss(named_terms(task.loss(widen(task.predict(batch)), batch))).backward()
    reached = [
        parameter for parameter in task.encoder.parameters() if parameter.grad is not None and bool(parameter.grad.any())
    ]
    if not reached:
        raise ContractViolationError("no parameter of the encoder gets a gradient")
    inside = {id(parameter) for parameter in task.encoder.parameters()}
    for name, parameter in task.named_parameters():
        if parameter.requires_grad and parameter.grad is None and id(parameter) not in inside:
            raise ContractViolationError(
                f"{name} is trainable and gets no gradient: freeze it (a Teacher is frozen) or remove it"
            )


def _state(bench: Bench) -> None:
    saved, loaded = bench.stepper(), bench.new_stepper(prepared=False)
    before = _attributes(saved.task)
    for _ in range(2):
        saved.step(bench.raw(saved))
    changed = [name for name, value in _attributes(saved.task).items() if before.get(name) != value]
    with tempfile.TemporaryFile() as file:
        torch.save(saved.state(), file)
        file.seek(0)
        loaded.load_state(torch.load(file, weights_only=True))
    saved.step(bench.raw(saved))
    loaded.step(bench.raw(loaded))
    for name, value in saved.task.state_dict().items():
        if not torch.equal(value, loaded.task.state_dict()[name]):
            state = f"{changed[0]} changes from step to step and" if changed else "some state"
            raise ContractViolationError(f"after saving, loading and one more step {name} differs: {state} is not in a buffer")


def _attributes(task: nn.Module) -> dict[str, Any]:
    """Return what the modules of a task keep in plain attributes, by name: values that can be compared."""
    kept = {}
    for name, module in task.named_modules():
        for attribute, value in vars(module).items():
            if not attribute.startswith("_") and attribute != "training":
                kept[f"{name}.{attribute}".lstrip(".")] = _comparable(value)
    return kept


def _comparable(value: Any) -> Any:
    """Return a copy of numbers, tensors and collections of them; None for anything else."""
    if isinstance(value, Tensor | np.ndarray):
        return value.tolist()
    if isinstance(value, list | tuple | deque):
        return [_comparable(item) for item in value]
    if isinstance(value, dict):
        return {key: _comparable(item) for key, item in value.items()}
    return value if isinstance(value, bool | int | float | str) else None


def _learns(bench: Bench) -> None:
    stepper = bench.stepper()
    trained = {name for name, parameter in stepper.task.named_parameters() if parameter.requires_grad}
    kept = {name: value.clone() for name, value in stepper.task.state_dict().items() if name not in trained}
    losses = []
    for _ in range(12):
        stepper.clock.step = 0  # the same random draws and state every time: a queue must not fill with this batch
        stepper.step(bench.raw(stepper))
        losses.append(stepper.settle()["loss"])
        for name, value in stepper.task.state_dict().items():
            if name in kept:
                value.copy_(kept[name])
        if len(losses) > 4 and max(losses[-4:]) < losses[0]:
            return  # clearly so, and most of the time of these checks is steps
    if not min(losses[-4:]) < losses[0]:
        raise ContractViolationError(f"loss went from {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps on one batch")


def _loads(bench: Bench) -> None:
    stepper = bench.stepper()
    source, encoder = stepper.settings.source, stepper.task.encoder
    metadata = {"task": "check", "size": source.info.size, "step": 0, "data": ""}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_model(path, stepper.task.exports(), {**describe(encoder), **metadata})
        loaded = load(path)
    view = source.view(to_device(bench.raw(stepper), source, torch.device("cpu")), encoder.modality)
    with torch.no_grad():
        # Another memory layout may round differently.
        exported = stepper.task.exports()["encoder"].eval()
        features = over_views(lambda view: {"loaded": loaded(view), "exported": exported(view)}, encoder.sample_dims, view)
        if not torch.allclose(features["loaded"], features["exported"], rtol=1e-4, atol=1e-5):
            raise ContractViolationError("the loaded encoder returns other features")
    json.dumps(loaded.recipe)
    try:
        json.dumps(stepper.task.metadata(), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ContractViolationError(f"metadata cannot be written as JSON: {error}") from error


def _previews(bench: Bench) -> None:
    stepper = bench.stepper()
    before = {name: value.clone() for name, value in stepper.task.state_dict().items()}
    for trained in (False, True):
        pictures, _ = render_previews(stepper, SAMPLES, trained)
        if pictures is None:
            continue
        if pictures.dim() != 5:
            raise ContractViolationError(f"preview returns {tuple(pictures.shape)}, not [N, columns, C, H, W]")
        if not torch.isfinite(pictures).all():
            raise ContractViolationError("preview returns values that are not finite")
        draw_previews(pictures[:1], stepper.task.preview_columns, io.BytesIO())
    for name, value in stepper.task.state_dict().items():
        if not torch.equal(value, before[name]):
            raise ContractViolationError(f"preview changes {name}")


QUICK: dict[str, Callable[[Bench], None]] = {
    "options have defaults, bounds and descriptions, and shadow no run flag": _options,
    "outputs have samples first": _samples_first,
    "labels change nothing unless the task needs them": _labels,
    "predictions do not depend on their targets": _leaks,
    "predict changes no state and is repeatable": _pure,
    "transform draws with torch alone": _draws,
    "a step is finite in float32 and bf16": _finite,
    "no stage waits for the device": _no_waiting,
    "gradient reaches the encoder and everything that is trained": _gradient,
    "state survives saving and loading": _state,
    "loss falls on a repeated batch": _learns,
    "the checkpoint loads without the task": _loads,
    "previews can be drawn, with and without predictions, and change no state": _previews,
}
