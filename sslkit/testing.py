"""The conformance suite: does a task keep the promises of the contract? For our tasks and for other people's.

from sslkit.testing import check_task

def test_contract():
    assert not [verdict for verdict in check_task("rotation") if not verdict.passed]
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from sslkit import encoders
from sslkit.data.canvas import Canvases
from sslkit.data.index import Index
from sslkit.engine.checkpoint import describe, load, save_model
from sslkit.engine.gradients import as_dict, named, widen
from sslkit.engine.plan import Plan
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.pretrain import with_task_defaults
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import Stepper, to_device
from sslkit.errors import SslkitError
from sslkit.registry import load_task
from sslkit.specs import PretrainSpec, alternatives, limits
from sslkit.task import Batch, Clock, PretextTask

_SAMPLES, _SIZE = 8, 32


@dataclass(frozen=True)
class Verdict:
    """Say whether a task keeps one promise, and if not, how it breaks it."""

    promise: str
    passed: bool
    detail: str = ""


class _Broken(Exception):
    """Say how a promise is broken."""


def check_task(task: str | type[PretextTask]) -> list[Verdict]:
    """Run every check on a task (an installed name, a .py file or a class) and return a verdict for each promise."""
    task_class = load_task(task) if isinstance(task, str) else task
    checks: dict[str, Callable[[_Bench], None]] = {
        "options have defaults, bounds and texts, and shadow no run flag": _options,
        "outputs have samples first": _samples_first,
        "predict changes no state and says the same twice": _pure,
        "a step is finite in float32 and bf16": _finite,
        "gradient reaches the encoder": _gradient,
        "state survives saving and loading": _state,
        "loss falls on a repeated batch": _learns,
        "the checkpoint loads without the task": _loads,
    }
    bench = _Bench(task_class)
    verdicts = []
    for promise, check in checks.items():
        try:
            with _quietly():
                check(bench)
            verdicts.append(Verdict(promise, True))
        except _Broken as broken:
            verdicts.append(Verdict(promise, False, str(broken)))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError, IndexError, SslkitError) as error:
            # What a wrong task usually dies of; the promise it was asked about is broken by that.
            verdicts.append(Verdict(promise, False, f"{type(error).__name__}: {error}"))
    return verdicts


class _Bench:
    """Build fresh steppers around a task on a handful of smooth random images, the encoder small."""

    def __init__(self, task_class: type[PretextTask]) -> None:
        self.task_class = task_class
        self.encoder = "vit_micro" if "tokens" in task_class.reads else "resnet_micro"
        coarse = torch.rand(_SAMPLES, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        images = torch.nn.functional.interpolate(coarse, size=_SIZE, mode="bicubic").clamp(0, 1)
        self.array: Any = (images * 255).byte().permute(0, 2, 3, 1).numpy()

    def stepper(self, precision: str = "fp32") -> Stepper:
        options = self.task_class.Options()
        spec = with_task_defaults(PretrainSpec(task="check", steps=1000, device="cpu", precision="fp32"), self.task_class)
        spec = spec.model_copy(update={"batch_size": _SAMPLES, "size": _SIZE, "encoder": self.encoder, "warmup": 0.0})
        index = Index("check", Path(), [], np.zeros((_SAMPLES, 2), dtype=np.int64), array=self.array)
        machine: Machine = choose_machine("cpu", precision)
        plan = Plan(spec, Canvases(index, _SIZE, None), machine, 0, {})
        seed_stage(0, "build", 0)
        narrow = {"width": 8} if self.encoder == "resnet_micro" else {"width": 32, "depth": 2}

        def build(**changes: Any) -> encoders.Encoder:
            return encoders.build_encoder({**plan.recipe, "options": narrow, **changes})

        encoder = self.task_class.build_encoder(options, build)
        stepper = Stepper(self.task_class(options, encoder, plan.data), plan, Clock(steps=1000))
        stepper.before_epoch(0)
        return stepper

    def raw(self) -> dict[str, Any]:
        return {"image": torch.as_tensor(self.array), "index": torch.arange(_SAMPLES), "broken": []}

    def transformed(self, stepper: Stepper) -> Batch:
        seed_stage(0, "transform", 0)
        with torch.no_grad():
            batch: Batch = stepper.task.transform(to_device(self.raw(), torch.device("cpu")))
        return batch


def _options(bench: _Bench) -> None:
    bench.task_class.Options()  # every option has a default
    run_flags = set(PretrainSpec.model_fields) | {"spec", "dry_run", "json", "traceback"}
    for name, field in bench.task_class.Options.model_fields.items():
        if name in run_flags:
            raise _Broken(f"option {name} shadows the run flag of that name")
        if not field.description:
            raise _Broken(f"option {name} has no description")
        number = {int, float} & set(alternatives(field.annotation))
        if number and not any(isinstance(limit, Ge | Gt | Le | Lt) for limit in limits(field)):
            raise _Broken(f"option {name} is a number without a bound")


def _samples_first(bench: _Bench) -> None:
    stepper = bench.stepper()
    batch = bench.transformed(stepper)
    for where, values in (("transform", batch), ("predict", as_dict(stepper.task.predict(batch)))):
        for name, value in values.items():
            if isinstance(value, list):
                raise _Broken(f"{where} returns a list as {name}")
            if isinstance(value, Tensor) and (value.dim() == 0 or len(value) != _SAMPLES):
                shape = tuple(value.shape)
                raise _Broken(f"{where} returns {name or 'a tensor'} of shape {shape} for {_SAMPLES} samples")


def _pure(bench: _Bench) -> None:
    stepper = bench.stepper()
    batch = bench.transformed(stepper)
    norms = {id(b) for m in stepper.task.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm) for b in m.buffers()}
    before = {name: value.clone() for name, value in stepper.task.state_dict(keep_vars=True).items()}
    outputs = []
    for _ in range(2):
        seed_stage(0, "predict", 0)
        outputs.append(as_dict(stepper.task.predict(batch)))
    for name, value in stepper.task.state_dict(keep_vars=True).items():
        if id(value) not in norms and not torch.equal(value, before[name]):
            raise _Broken(f"predict changes {name}")
    for name, value in outputs[0].items():
        if not torch.equal(value, outputs[1][name]):
            raise _Broken(f"two calls of predict with one seed differ in {name or 'their output'}")


def _finite(bench: _Bench) -> None:
    for precision in ("fp32", "bf16"):
        said = bench.stepper(precision).step(bench.raw())
        if not all(np.isfinite(list(said.values()))):
            raise _Broken(f"{said} in {precision}")


def _gradient(bench: _Bench) -> None:
    stepper = bench.stepper()
    batch = bench.transformed(stepper)
    torch.stack(list(named(stepper.task.loss(widen(stepper.task.predict(batch)), batch)).values())).sum().backward()
    gradients = [parameter.grad for parameter in stepper.task.encoder.parameters() if parameter.grad is not None]
    if not any(bool(gradient.abs().sum() > 0) for gradient in gradients):
        raise _Broken("no parameter of the encoder gets a gradient")


def _state(bench: _Bench) -> None:
    one, other = bench.stepper(), bench.stepper()
    for _ in range(2):
        one.step(bench.raw())
    with tempfile.TemporaryFile() as file:
        torch.save(one.state(), file)
        file.seek(0)
        other.load_state(torch.load(file, weights_only=True))
    one.step(bench.raw())
    other.step(bench.raw())
    for name, value in one.task.state_dict().items():
        if not torch.equal(value, other.task.state_dict()[name]):
            raise _Broken(f"after saving, loading and one more step {name} differs: some state is not in a buffer")


def _learns(bench: _Bench) -> None:
    stepper = bench.stepper()
    losses = []
    for _ in range(25):
        stepper.clock.step = 0  # the same cards every time
        losses.append(stepper.step(bench.raw())["loss"])
    if not min(losses[-5:]) < losses[0]:
        raise _Broken(f"loss went from {losses[0]:.4g} to {losses[-1]:.4g} in {len(losses)} steps on one batch")


def _loads(bench: _Bench) -> None:
    stepper = bench.stepper()
    encoder = stepper.task.encoder
    said = {"task": "check", "size": _SIZE, "step": 0, "data": ""}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.safetensors")
        save_model(path, stepper.task.exports(), {**describe(encoder), **said})
        loaded = load(path)
    image = to_device(bench.raw(), torch.device("cpu"))["image"]
    with torch.no_grad():
        if not torch.equal(loaded(image), stepper.task.exports()["encoder"].eval()(image)):
            raise _Broken("the loaded encoder computes something else")
    json.dumps(loaded.recipe)


@contextmanager
def _quietly() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
