"""The exact gradient of one step's loss, whatever the number of micro-batches and processes."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.task import Batch, PretextTask, rows
from sslkit.engine.parallel import GatheredBatch, World
from sslkit.engine.precision import Machine
from sslkit.engine.profile import BACKWARD, FORWARD, HOOKS, LOSS, Enter, unmeasured
from sslkit.engine.seeds import seed_stage
from sslkit.nn import precision

BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass
class StepReport:
    """Results of a step: loss terms, the task's metrics, and the rows that `remember` kept for `after_step`."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    remembered: Batch = field(default_factory=dict)


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of a transformed batch, on which `predict` runs; every call with one of them is the same."""

    task: PretextTask
    predict: Callable[[Batch], Any]
    machine: Machine
    batch: Batch
    size: int
    seed: int
    step: int
    enter: Enter = unmeasured

    @property
    def samples(self) -> int:
        """Return the rows of this process's batch."""
        return next(len(value) for value in self.batch.values() if isinstance(value, Tensor))

    @property
    def starts(self) -> range:
        """Return the first row of each micro-batch; the last one may be shorter."""
        return range(0, self.samples, self.size)

    def rows(self, start: int) -> Batch:
        """Return the rows of the micro-batch that begins at `start`."""
        return rows(self.batch, start, min(start + self.size, self.samples))

    def seed_stage(self, stage: str, start: int) -> None:
        """Seed a stage that runs once per micro-batch and process."""
        seed_stage(self.seed, stage, self.step, start // self.size, self.machine.world.rank)

    def output(self, start: int) -> Any:
        """Run encoder and head on a micro-batch under its own seed; half precision is widened to float32."""
        self.enter(FORWARD)
        self.seed_stage("predict", start)
        with self.machine.autocast():
            return widen(self.predict(self.rows(start)))


def compute_gradients(micro_batches: MicroBatches, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Accumulate this process's gradient in the parameters; the mean over processes is the gradient of the step.

    `scale` is the loss scaler's. The terms in the report average to the step's in the same way; `remembered` has the rows
    of all processes.
    """
    return _coupled(micro_batches, scale) if micro_batches.task.couples_samples else _uncoupled(micro_batches, scale)


def _uncoupled(micro_batches: MicroBatches, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Accumulate one micro-batch after the other: means weighted by rows, sums divided by the whole step's counts."""
    task, world, report = micro_batches.task, micro_batches.machine.world, StepReport()
    counts = _step_counts(task, micro_batches.batch, world)
    kept: list[tuple[Batch, dict[str, Tensor]]] = []
    for start in micro_batches.starts:
        batch = micro_batches.rows(start)
        output = micro_batches.output(start)
        micro_batches.enter(LOSS)
        micro_batches.seed_stage("loss", start)
        share = (min(start + micro_batches.size, micro_batches.samples) - start) / micro_batches.samples
        terms = {
            name: term / counts[name] if name in counts else term * share
            for name, term in named_terms(task.loss(output, batch)).items()
        }
        micro_batches.enter(BACKWARD)
        scale(total_loss(terms)).backward()
        for name, term in terms.items():
            report.terms[name] = report.terms.get(name, 0) + term.detach()
        micro_batches.enter(HOOKS)
        kept.append(_keep(task, output, batch))
    report.remembered = _gather(concatenate([remembered for remembered, _ in kept]), world)
    report.metrics = concatenate([metrics for _, metrics in kept])
    return report


def _coupled(micro_batches: MicroBatches, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Compute the loss over the outputs of all micro-batches and processes, and backpropagate into this process's.

    A single micro-batch keeps its graph. Several are predicted without graphs first, and once more one by one for the
    backward pass (GradCache; Gao et al., 2021); norm statistics are restored in between, so that they move once. The
    gradient of gathered rows is multiplied by the number of processes, which the mean over processes takes away again;
    parameters that only the loss uses have their whole gradient in every process, which is its own mean.

    With `task.couples`, only the outputs and batch entries it names are gathered. A term of the others is a mean over this
    process's rows, or a sum named in `counts`, and its gradient is not multiplied: the mean over processes is the step's.
    """
    task, world = micro_batches.task, micro_batches.machine.world
    at_once = len(micro_batches.starts) == 1
    statistics = [] if at_once else [(buffer, buffer.clone()) for buffer in norm_buffers(task)]
    with torch.set_grad_enabled(at_once):
        outputs = [as_dict(micro_batches.output(start)) for start in micro_batches.starts]
    for buffer, before in statistics:
        buffer.copy_(before)
    micro_batches.enter(LOSS)
    # The loss sees leaves: its gradient stops there, and the graphs of predict are entered afterwards.
    local = {name: torch.cat([output[name].detach() for output in outputs]) for name in outputs[0]}
    gathered = {name for name in local if world.size > 1 and (not task.couples or name in task.couples)}
    leaves = {
        name: (world.gather(value) if name in gathered else value).requires_grad_(
            outputs[0][name].requires_grad if at_once else outputs[0][name].is_floating_point()
        )
        for name, value in local.items()
    }
    output = leaves.get("", leaves)
    batch = micro_batches.batch if world.size == 1 else GatheredBatch(micro_batches.batch, world, task.couples)
    seed_stage(micro_batches.seed, "loss", micro_batches.step)
    counts = _step_counts(task, micro_batches.batch, world) if task.couples else task.counts(batch)
    terms = {
        name: term / counts[name] if name in counts else term for name, term in named_terms(task.loss(output, batch)).items()
    }
    micro_batches.enter(BACKWARD)
    scale(total_loss(terms)).backward()
    first = world.rank * micro_batches.samples
    for place, start in enumerate(micro_batches.starts):
        predicted = outputs[place] if at_once else as_dict(micro_batches.output(start))
        begins = {name: first + start if name in gathered else start for name in leaves}
        inputs = [
            (
                predicted[name],
                leaf.grad[begins[name] : begins[name] + len(predicted[name])] * (world.size if name in gathered else 1),
            )
            for name, leaf in leaves.items()
            if leaf.grad is not None and predicted[name].requires_grad
        ]
        micro_batches.enter(BACKWARD)
        if inputs:
            torch.autograd.backward([tensor for tensor, _ in inputs], [gradient for _, gradient in inputs])
    micro_batches.enter(HOOKS)
    if task.couples and world.size > 1:  # as for an uncoupled loss: rows of this process, gathered afterwards
        remembered, metrics = _keep(task, local.get("", local), micro_batches.batch)
        remembered = _gather(remembered, world)
    else:
        remembered, metrics = _keep(task, output, batch)
    return StepReport({name: term.detach() for name, term in terms.items()}, metrics, remembered)


def _keep(task: PretextTask, output: Any, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    with torch.no_grad():
        return task.remember(output, batch), task.metrics(output, batch)


def _gather(batch: Batch, world: World) -> Batch:
    return {name: world.gather(value) for name, value in batch.items()}


def _step_counts(task: PretextTask, batch: Batch, world: World) -> dict[str, Tensor]:
    """Return the divisors of sums over this process's rows, such that the mean over processes is divided by the total."""
    return {name: _divisor(world.total(count)) / world.size for name, count in task.counts(batch).items()}


def _divisor(count: Tensor) -> Tensor:
    """Return the divisor of a sum: 1 where nothing was counted, and so nothing summed."""
    return count.where(count != 0, 1)


def concatenate(parts: list[Any]) -> dict[str, Any]:
    """Return the rows of all parts in one tensor, by name."""
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def total_loss(terms: dict[str, Tensor]) -> Tensor:
    """Return the sum of the terms, which is trained on."""
    return torch.stack(list(terms.values())).sum()


def has_batch_norm(module: nn.Module) -> bool:
    """Return whether a network normalizes by the statistics of the samples that are computed at once."""
    return any(isinstance(part, BATCH_NORM) for part in module.modules())


def norm_buffers(module: nn.Module) -> list[Tensor]:
    """Return the running statistics of all BatchNorm layers."""
    return [buffer for part in module.modules() if isinstance(part, BATCH_NORM) for buffer in part.buffers(recurse=False)]


def named_terms(loss: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """Return loss terms by name; the name of a scalar is `loss`."""
    return loss if isinstance(loss, dict) else {"loss": loss}


def as_dict(output: Any) -> dict[str, Tensor]:
    """Return outputs by name; the name of a single tensor is empty."""
    return output if isinstance(output, dict) else {"": output}


def widen(output: Any) -> Any:
    """Return outputs with half precision widened to float32, still in the graph."""
    if isinstance(output, dict):
        return {name: widen(value) for name, value in output.items()}
    return precision.widen(output)
