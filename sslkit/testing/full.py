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
from sslkit.engine.compilation import eager_reason
from sslkit.engine.loop import train
from sslkit.engine.micro_batches import as_dict, named_terms, total_loss, widen
from sslkit.engine.run_folder import RunFolder
from sslkit.engine.seeds import seed_stage
from sslkit.engine.session import Session
from sslkit.engine.signals import StopSignal
from sslkit.engine.stepper import Stepper
from sslkit.testing.bench import SAMPLES, Bench, ContractViolationError, compare_tensors, compare_traces
from sslkit.testing.ranks import Ranks

_CURVE = 1e-3  # largest relative difference of the losses of twenty steps

_COMPILED = 1e-3  # largest difference of outputs and gradients, relative to the largest value


def _micro_batches(bench: Bench) -> None:
    whole = bench.exact_steps()
    for size in (2, 3):
        compare_traces(whole, bench.exact_steps(micro_batch=size), f"with --micro-batch {size}")


def _coupling(bench: Bench) -> None:
    """Compare the gradient of half of the rows when the others are replaced: it may change only with a coupled loss."""
    stepper = bench.stepper(exact=True)
    batch = bench.transformed(stepper)
    with torch.no_grad():
        output = as_dict(stepper.task.predict(batch))
    first, second = (
        _gradient_of_half(stepper.task, output, batch),
        _gradient_of_half(stepper.task, _repeat_last_row(output), _repeat_last_row(batch)),
    )
    coupled = any(not torch.allclose(value, second[name], rtol=1e-9, atol=1e-12) for name, value in first.items())
    declared = stepper.task.couples_samples
    if coupled and not declared:
        raise ContractViolationError("the loss of one sample depends on the others, and couples_samples is False")
    if declared and not coupled:
        raise ContractViolationError("couples_samples is True, and the loss of one sample does not depend on the others")
    unknown = sorted(set(stepper.task.couples) - output.keys() - batch.keys())
    if unknown:
        raise ContractViolationError(f"couples names {unknown[0]}, which is neither an output nor in the batch")
    if stepper.task.couples and not declared:
        raise ContractViolationError("couples names outputs, and couples_samples is False")


def _gradient_of_half(task: PretextTask, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
    leaves = {name: value.clone().requires_grad_(value.is_floating_point()) for name, value in output.items()}
    seed_stage(0, "loss", 0)
    total_loss(named_terms(task.loss(leaves.get("", leaves), batch))).backward()
    return {name: leaf.grad[: SAMPLES // 2] for name, leaf in leaves.items() if leaf.grad is not None}


def _repeat_last_row(values: Batch) -> dict[str, Any]:
    """Return the values with every row of the second half replaced by the last one."""

    def repeat(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        value = value.clone()
        value[SAMPLES // 2 :] = value[-1].clone()
        return value

    return {name: repeat(value) for name, value in values.items()}


def _rows_apart(bench: Bench) -> None:
    stepper = bench.stepper(exact=True)
    task, batch = stepper.task.eval(), bench.transformed(stepper)  # eval: BatchNorm and dropout are exempt
    order = torch.randperm(SAMPLES, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole = as_dict(task.predict(batch))
        shuffled = as_dict(task.predict(_take(batch, order)))
        half = as_dict(task.predict(_take(batch, torch.arange(SAMPLES // 2))))
    for name, value in whole.items():
        output = name or "the output"
        if not _close(value[order], shuffled[name]):
            raise ContractViolationError(f"{output} of predict depends on the order of rows")
        if not _close(value[: SAMPLES // 2], half[name]):
            raise ContractViolationError(f"{output} of predict depends on other rows")


def _take(batch: Batch, order: Tensor) -> Batch:
    return {name: value[order] if isinstance(value, Tensor) else value for name, value in batch.items()}


def _close(first: Tensor, second: Tensor) -> bool:
    return torch.allclose(first.double(), second.double(), rtol=1e-9, atol=1e-9)


def _compiles(bench: Bench) -> None:
    """Compare outputs and gradients of the compiled and the eager `predict`.

    The gradients, too: a compiled function that reads a buffer and then updates it may get them wrong without an error.
    """
    stepper = bench.stepper()
    if eager_reason(stepper.task) is not None:
        return  # it says so, and the engine never compiles it
    task, batch = stepper.task, bench.transformed(stepper)
    buffers = [(buffer, buffer.clone()) for buffer in task.buffers()]
    torch._dynamo.reset()
    try:
        compiled = torch.compile(task.predict, fullgraph=True, backend="aot_eager")
        outputs, gradients = [], []
        for predict in (task.predict, compiled):
            for buffer, value in buffers:  # norms moved their statistics
                buffer.copy_(value)
            task.zero_grad(set_to_none=True)
            seed_stage(0, "predict", 0)
            output = predict(batch)
            seed_stage(0, "loss", 0)
            total_loss(named_terms(task.loss(widen(output), batch))).backward()
            outputs.append({name or "output": value.detach() for name, value in as_dict(output).items()})
            gradients.append({name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None})
    finally:
        torch._dynamo.reset()
    compare_tensors(outputs[0], outputs[1], _COMPILED, "compiled predict: the")
    compare_tensors(gradients[0], gradients[1], _COMPILED, "compiled predict: the gradient of")


def _resumes(bench: Bench) -> None:
    straight, stopped = bench.stepper(batches=3), bench.new_stepper(batches=3)
    resumed = bench.new_stepper(batches=3, prepared=False)
    saved = io.BytesIO()
    _train(straight, StopSignal())
    stop = StopSignal()
    stop.signal = 15
    with contextlib.suppress(RunInterruptedError):  # ends after the first of three steps
        _train(stopped, stop, lambda state: torch.save(state, saved))
    saved.seek(0)
    resumed.load_state(torch.load(saved, weights_only=True))
    _train(resumed, StopSignal())
    for name, value in straight.task.state_dict().items():
        if not torch.equal(value, resumed.task.state_dict()[name]):
            raise ContractViolationError(
                f"after a stop inside an epoch and a resume {name} differs: some state is not in a buffer"
            )


def _train(stepper: Stepper, stop: StopSignal, save: Callable[[dict[str, Any]], None] | None = None, steps: int = 5) -> None:
    """Take so many steps, or those that are left of them."""
    stepper.clock.steps = steps
    loader = Loader(stepper.settings.source, 0, substitute=False)
    with tempfile.TemporaryDirectory() as folder:
        session = Session(stepper, loader, RunFolder(Path(folder), writes=False), stop, write_checkpoint=save)
        session.epoch_prepared = stepper.clock.step == 0
        train(session)


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
    "predict compiles as one graph, with the same gradients": _compiles,
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
