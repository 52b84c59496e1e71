"""The gradient of one step's loss, exactly, however many pieces and processes the batch is cut into."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.task import Batch, PretextTask, rows
from sslkit.engine.parallel import GatheredBatch
from sslkit.engine.precision import Machine
from sslkit.engine.profile import BACKWARD, FORWARD, HOOKS, LOSS, Enter, unmeasured
from sslkit.engine.seeds import seed_stage

BATCH_NORM = nn.modules.batchnorm._BatchNorm


@dataclass
class StepReport:
    """Hold what a step says: loss terms, the task's metrics, and the rows `after_step` asked for."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    seen: Batch = field(default_factory=dict)


@dataclass(frozen=True)
class MicroBatches:
    """Know how to run `predict` on each piece of a transformed batch, the same way whenever it is asked to."""

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
        """Return where each piece starts; the last may be shorter."""
        return range(0, self.samples, self.size)

    def rows(self, start: int) -> Batch:
        """Return the piece's rows of the batch."""
        return rows(self.batch, start, min(start + self.size, self.samples))

    def seed_stage(self, stage: str, start: int) -> None:
        """Seed a stage that runs once per piece and process."""
        seed_stage(self.seed, stage, self.step, start // self.size, self.machine.world.rank)

    def output(self, start: int) -> Any:
        """Run encoder and head on a piece under its own seed; what is half precision comes back as float32."""
        self.enter(FORWARD)
        self.seed_stage("predict", start)
        with self.machine.autocast():
            return widen(self.predict(self.rows(start)))


def compute_gradients(pieces: MicroBatches, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Add the gradient of this process to the parameters: the mean over all processes is the step's.

    `scale` is the loss scaler's. Terms in the report are shares of the step's in the same way; what `after_step` will
    see has the rows of all processes.
    """
    return _coupled(pieces, scale) if pieces.task.couples_samples else _uncoupled(pieces, scale)


def _uncoupled(pieces: MicroBatches, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Accumulate piece by piece: means weighted by rows, sums divided by the whole step's counts."""
    task, world, report = pieces.task, pieces.machine.world, StepReport()
    # The mean over processes of what each divides by its share is what the sum over all is, divided by all.
    counts = {name: _divisor(world.total(count)) / world.size for name, count in task.counts(pieces.batch).items()}
    kept: list[tuple[Batch, dict[str, Tensor]]] = []
    for start in pieces.starts:
        batch = pieces.rows(start)
        output = pieces.output(start)
        pieces.enter(LOSS)
        pieces.seed_stage("loss", start)
        share = (min(start + pieces.size, pieces.samples) - start) / pieces.samples
        terms = {
            name: term / counts[name] if name in counts else term * share
            for name, term in named_terms(task.loss(output, batch)).items()
        }
        pieces.enter(BACKWARD)
        scale(total_loss(terms)).backward()
        for name, term in terms.items():
            report.terms[name] = report.terms.get(name, 0) + term.detach()
        pieces.enter(HOOKS)
        kept.append(_keep(task, output, batch))
    report.seen = {name: world.gather(rows) for name, rows in concatenate([seen for seen, _ in kept]).items()}
    report.metrics = concatenate([metrics for _, metrics in kept])
    return report


def _coupled(pieces: MicroBatches, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Take the loss over all outputs of all pieces and processes, and feed its gradients into this process's pieces.

    One piece keeps its graph. Several are predicted without graphs first, and again one by one to be fed (GradCache;
    Gao et al., 2021); norm statistics are put back in between, so that they move once. A process feeds its own rows
    times the number of processes, which the mean over processes takes away again; parameters that only the loss uses
    have their whole gradient everywhere, which is its own mean.
    """
    task, world = pieces.task, pieces.machine.world
    at_once = len(pieces.starts) == 1
    statistics = [] if at_once else [(buffer, buffer.clone()) for buffer in norm_buffers(task)]
    with torch.set_grad_enabled(at_once):
        outputs = [as_dict(pieces.output(start)) for start in pieces.starts]
    for buffer, before in statistics:
        buffer.copy_(before)
    pieces.enter(LOSS)
    # The loss sees leaves: its gradient stops there, and the graphs of predict are entered afterwards.
    leaves = {
        name: world.gather(torch.cat([output[name].detach() for output in outputs])).requires_grad_(
            outputs[0][name].requires_grad if at_once else outputs[0][name].is_floating_point()
        )
        for name in outputs[0]
    }
    output = leaves.get("", leaves)
    batch = pieces.batch if world.size == 1 else GatheredBatch(pieces.batch, world)
    seed_stage(pieces.seed, "loss", pieces.step)
    counts = task.counts(batch)
    terms = {
        name: term / counts[name] if name in counts else term for name, term in named_terms(task.loss(output, batch)).items()
    }
    pieces.enter(BACKWARD)
    scale(total_loss(terms)).backward()
    own = world.rank * pieces.samples
    for place, start in enumerate(pieces.starts):
        predicted = outputs[place] if at_once else as_dict(pieces.output(start))
        fed = [
            (predicted[name], leaf.grad[own + start : own + start + len(predicted[name])] * world.size)
            for name, leaf in leaves.items()
            if leaf.grad is not None and predicted[name].requires_grad
        ]
        pieces.enter(BACKWARD)
        if fed:
            torch.autograd.backward([tensor for tensor, _ in fed], [gradient for _, gradient in fed])
    pieces.enter(HOOKS)
    seen, metrics = _keep(task, output, batch)
    return StepReport({name: term.detach() for name, term in terms.items()}, metrics, seen)


def _keep(task: PretextTask, output: Any, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    with torch.no_grad():
        return task.remember(output, batch), task.metrics(output, batch)


def _divisor(total_loss: Tensor) -> Tensor:
    """Return what a sum is divided by: nothing counted, nothing summed."""
    return total_loss.where(total_loss != 0, 1)


def concatenate(pieces: list[Any]) -> dict[str, Any]:
    """Return the rows of all pieces together, by name."""
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def total_loss(terms: dict[str, Tensor]) -> Tensor:
    """Return what is trained on: the sum of the terms."""
    return torch.stack(list(terms.values())).sum()


def norm_buffers(module: nn.Module) -> list[Tensor]:
    """Return the statistics that BatchNorm moves while training."""
    return [buffer for part in module.modules() if isinstance(part, BATCH_NORM) for buffer in part.buffers(recurse=False)]


def named_terms(loss: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
    """Return loss terms by name; a scalar is called `loss`."""
    return loss if isinstance(loss, dict) else {"loss": loss}


def as_dict(output: Any) -> dict[str, Tensor]:
    """Return outputs by name; a lone tensor has the empty name."""
    return output if isinstance(output, dict) else {"": output}


def widen(output: Any) -> Any:
    """Return outputs with half precision widened to float32, still in the graph."""
    if isinstance(output, dict):
        return {name: widen(value) for name, value in output.items()}
    return output.float() if output.dtype in (torch.float16, torch.bfloat16) else output
