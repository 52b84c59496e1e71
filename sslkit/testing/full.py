"""The checks that take longer: exactness, compilation, resuming, collapse."""

import contextlib
import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sslkit.contract.errors import RunInterruptedError
from sslkit.contract.task import Batch, PretextTask
from sslkit.data.loader import Loader
from sslkit.engine.loop import train
from sslkit.engine.micro_batches import as_dict, named_terms, total_loss
from sslkit.engine.run_folder import RunFolder
from sslkit.engine.seeds import seed_stage
from sslkit.engine.signals import StopSignal
from sslkit.engine.stepper import Stepper
from sslkit.testing.bench import SAMPLES, Bench, ContractViolationError, compare_traces
from sslkit.testing.ranks import Ranks

_CURVE = 1e-3  # how far, relatively, the losses of twenty steps may be apart


def _micro_batches(bench: Bench) -> None:
    whole = bench.exact_steps()
    for size in (2, 3):
        compare_traces(whole, bench.exact_steps(micro_batch=size), f"with --micro-batch {size}")


def _coupling(bench: Bench) -> None:
    """Compare the gradient of some rows when the others are replaced: it may change only in a coupled loss."""
    stepper = bench.stepper(exact=True)
    batch = bench.transformed(stepper)
    with torch.no_grad():
        output = as_dict(stepper.task.predict(batch))
    first, second = (
        _gradient_of_half(stepper.task, output, batch),
        _gradient_of_half(stepper.task, _others_alike(output), _others_alike(batch)),
    )
    coupled = any(not torch.allclose(value, second[name], rtol=1e-9, atol=1e-12) for name, value in first.items())
    declared = stepper.task.couples_samples
    if coupled and not declared:
        raise ContractViolationError("the loss of one sample depends on the others, and couples_samples is False")
    if declared and not coupled:
        raise ContractViolationError("couples_samples is True, and the loss of one sample does not depend on the others")


def _gradient_of_half(task: PretextTask, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in output.items()}
    seed_stage(0, "loss", 0)
    total_loss(named_terms(task.loss(leaves.get("", leaves), batch))).backward()
    return {name: leaf.grad[: SAMPLES // 2] for name, leaf in leaves.items() if leaf.grad is not None}


def _others_alike(values: Batch) -> dict[str, Any]:
    """Return the values with every row of the second half replaced by the last one."""

    def replaced(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.clone()
        value[SAMPLES // 2 :] = value[-1].clone()
        return value

    return {name: replaced(value) for name, value in values.items()}


def _rows_apart(bench: Bench) -> None:
    stepper = bench.stepper(exact=True)
    task, batch = stepper.task.eval(), bench.transformed(stepper)  # eval: what BatchNorm and dropout do is not meant
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = as_dict(task.predict(batch))
        mixed = as_dict(task.predict(_take(batch, order)))
        half = as_dict(task.predict(_take(batch, torch.arange(SAMPLES // 2))))
    for name, value in whole.items():
        called = name or "the output"
        if not _alike(value[order], mixed[name]):
            raise ContractViolationError(f"{called} of predict depends on the order of rows")
        if not _alike(value[: SAMPLES // 2], half[name]):
            raise ContractViolationError(f"{called} of predict depends on other rows")


def _take(batch: Batch, which: Tensor) -> Batch:
    return {name: value[which] if isinstance(value, Tensor) else value for name, value in batch.items()}


def _alike(one: Tensor, other: Tensor) -> bool:
    return torch.allclose(one.double(), other.double(), rtol=1e-9, atol=1e-9)


def _compiles(bench: Bench) -> None:
    stepper = bench.stepper()
    batch = bench.transformed(stepper)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(stepper.task.predict, fullgraph=True, backend="aot_eager")
        outputs = []
        for predict in (stepper.task.predict, compiled):
            seed_stage(0, "predict", 0)
            outputs.append(as_dict(predict(batch)))
    finally:
        torch._dynamo.reset()
    for name, value in outputs[0].items():
        if not torch.allclose(value, outputs[1][name], rtol=1e-3, atol=1e-4):
            raise ContractViolationError(f"compiled predict computes another {name or 'output'}")


def _resumes(bench: Bench) -> None:
    straight, stopped = bench.stepper(batches=3), bench.stepper(batches=3)
    resumed = bench.stepper(batches=3, prepared=False)
    saved = io.BytesIO()
    _train(straight, StopSignal())
    stop = StopSignal()
    stop.signal = 15
    with contextlib.suppress(RunInterruptedError):  # ends after the first of three steps
        _train(stopped, stop, lambda: torch.save(stopped.state(), saved))
    saved.seek(0)
    resumed.load_state(torch.load(saved, weights_only=True))
    _train(resumed, StopSignal())
    for name, value in straight.task.state_dict().items():
        if not torch.equal(value, resumed.task.state_dict()[name]):
            raise ContractViolationError(
                f"after a stop inside an epoch and a resume {name} differs: some state is not in a buffer"
            )


def _train(stepper: Stepper, stop: StopSignal, save: Callable[[], None] = lambda: None, steps: int = 5) -> None:
    """Take so many steps, or what is left of them."""
    stepper.clock.steps = steps
    loader = Loader(stepper.plan.source, 0, substitute=False)
    with tempfile.TemporaryDirectory() as folder:
        train(stepper, loader, RunFolder(Path(folder), writes=False), save, prepared=stepper.clock.step == 0, stop=stop)


def _no_collapse(bench: Bench) -> None:
    stepper = bench.stepper(batches=4)
    _train(stepper, StopSignal(), steps=60)
    features = stepper.features().double()
    spread = float(features.std(dim=0).norm() / features.norm(dim=1).mean())
    energy = torch.linalg.svdvals(features - features.mean(dim=0)) + 1e-12
    share = energy / energy.sum()
    rank = float(torch.exp(-(share * share.log()).sum()))
    if not (spread > 1e-3 and rank > 1.5):
        raise ContractViolationError(
            f"after 60 steps features of {len(features)} samples differ by {spread:.1g} and span {rank:.1f} dimensions"
        )


FULL: dict[str, Callable[[Bench], None]] = {
    "micro-batches change nothing but rounding": _micro_batches,
    "couples_samples is what the loss does": _coupling,
    "predict of a row depends on no other row": _rows_apart,
    "predict compiles as one graph": _compiles,
    "a resume inside an epoch is exact": _resumes,
    "features do not collapse in a short run": _no_collapse,
}


def check_ranks(bench: Bench, ranks: Ranks, task: str | type[PretextTask]) -> None:
    """Compare two processes, each with half of a transformed batch, with this one, which has all of it."""
    exact, curves = ranks.run("exact_steps", task), ranks.run("loss_curve", task, shares=2)
    compare_traces(exact[0], exact[1], "between two processes", tolerance=0)
    compare_traces(bench.exact_steps(), exact[0], "with two processes")
    for step, (alone, together) in enumerate(zip(bench.loss_curve(shares=2), curves[0], strict=True), start=1):
        if abs(alone - together) > _CURVE * abs(alone):
            raise ContractViolationError(f"with two processes the loss of step {step} is {together:.6g} instead of {alone:.6g}")
