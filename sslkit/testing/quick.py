"""The checks that take seconds."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from sslkit.contract.encoder import over_views
from sslkit.contract.options import alternatives, limits
from sslkit.engine.checkpoint import describe, load, save_model
from sslkit.engine.micro_batches import as_dict, named_terms, norm_buffers, total_loss, widen
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import to_device
from sslkit.tasks.load import RUN_FLAGS
from sslkit.testing.bench import SAMPLES, Bench, ContractViolationError


def _options(bench: Bench) -> None:
    bench.options()  # every option has a default, or an example
    run_flags = RUN_FLAGS | {"spec", "dry_run", "json", "traceback"}
    for name, field in bench.task_class.Options.model_fields.items():
        if name in run_flags:
            raise ContractViolationError(f"option {name} shadows the run flag of that name")
        if not field.description:
            raise ContractViolationError(f"option {name} has no description")
        number = {int, float} & set(alternatives(field.annotation))
        if number and not any(isinstance(limit, Ge | Gt | Le | Lt) for limit in limits(field)):
            raise ContractViolationError(f"option {name} is a number without a bound")


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


def _finite(bench: Bench) -> None:
    for precision in ("fp32", "bf16"):
        stepper = bench.stepper(precision)
        said = stepper.step(bench.raw(stepper))
        if not all(np.isfinite(list(said.values()))):
            raise ContractViolationError(f"{said} in {precision}")


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
            raise ContractViolationError(f"{name} is trained and gets no gradient: freeze it (a Teacher is frozen), or drop it")


def _state(bench: Bench) -> None:
    one, other = bench.stepper(), bench.stepper(prepared=False)
    for _ in range(2):
        one.step(bench.raw(one))
    with tempfile.TemporaryFile() as file:
        torch.save(one.state(), file)
        file.seek(0)
        other.load_state(torch.load(file, weights_only=True))
    one.step(bench.raw(one))
    other.step(bench.raw(other))
    for name, value in one.task.state_dict().items():
        if not torch.equal(value, other.task.state_dict()[name]):
            raise ContractViolationError(
                f"after saving, loading and one more step {name} differs: some state is not in a buffer"
            )


def _learns(bench: Bench) -> None:
    stepper = bench.stepper()
    trained = {name for name, parameter in stepper.task.named_parameters() if parameter.requires_grad}
    kept = {name: value.clone() for name, value in stepper.task.state_dict().items() if name not in trained}
    losses = []
    for _ in range(12):
        stepper.clock.step = 0  # the same cards every time, and the same state: a queue must not fill with this batch
        losses.append(stepper.step(bench.raw(stepper))["loss"])
        for name, value in stepper.task.state_dict().items():
            if name in kept:
                value.copy_(kept[name])
    if not min(losses[-4:]) < losses[0]:
        raise ContractViolationError(f"loss went from {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps on one batch")


def _loads(bench: Bench) -> None:
    stepper = bench.stepper()
    source, encoder = stepper.plan.source, stepper.task.encoder
    said = {"task": "check", "size": source.info.size, "step": 0, "data": ""}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_model(path, stepper.task.exports(), {**describe(encoder), **said})
        loaded = load(path)
    view = source.view(to_device(bench.raw(stepper), source, torch.device("cpu")))
    with torch.no_grad():
        # Another memory layout may round otherwise.
        exported = stepper.task.exports()["encoder"].eval()
        found = over_views(lambda one: {"loaded": loaded(one), "exported": exported(one)}, encoder.sample_dims, view)
        if not torch.allclose(found["loaded"], found["exported"], rtol=1e-4, atol=1e-5):
            raise ContractViolationError("the loaded encoder computes something else")
    json.dumps(loaded.recipe)


QUICK: dict[str, Callable[[Bench], None]] = {
    "options have defaults, bounds and texts, and shadow no run flag": _options,
    "outputs have samples first": _samples_first,
    "predict changes no state and says the same twice": _pure,
    "a step is finite in float32 and bf16": _finite,
    "gradient reaches the encoder, and all that is trained": _gradient,
    "state survives saving and loading": _state,
    "loss falls on a repeated batch": _learns,
    "the checkpoint loads without the task": _loads,
}
