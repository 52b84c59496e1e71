"""The gradient of one step's loss, exactly, however many pieces the batch is cut into."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.engine.precision import Machine
from sslkit.engine.seeds import seed_stage
from sslkit.task import Batch, PretextTask, rows


@dataclass
class StepReport:
    """Hold what a step says: loss terms, the task's metrics, and the rows `after_step` asked for."""

    terms: dict[str, Tensor] = field(default_factory=dict)
    metrics: dict[str, Tensor] = field(default_factory=dict)
    seen: Batch = field(default_factory=dict)


@dataclass(frozen=True)
class Pieces:
    """Know how to run `predict` on each piece of a transformed batch, the same way whenever it is asked to."""

    task: PretextTask
    predict: Callable[[Batch], Any]
    machine: Machine
    batch: Batch
    size: int
    seed: int
    step: int

    @property
    def samples(self) -> int:
        """Return the rows of the whole batch."""
        return next(len(value) for value in self.batch.values() if isinstance(value, Tensor))

    @property
    def starts(self) -> range:
        """Return where each piece starts; the last may be shorter."""
        return range(0, self.samples, self.size)

    def rows(self, start: int) -> Batch:
        """Return the piece's rows of the batch."""
        return rows(self.batch, start, min(start + self.size, self.samples))

    def output(self, start: int) -> Any:
        """Run encoder and head on a piece under its own seed; what is half precision comes back as float32."""
        seed_stage(self.seed, "predict", self.step, start // self.size)
        with self.machine.autocast():
            return widen(self.predict(self.rows(start)))


def compute_gradients(pieces: Pieces, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Add the step's gradient to the parameters; `scale` is the loss scaler's."""
    if not pieces.task.couples_samples:
        return _uncoupled(pieces, scale)
    if len(pieces.starts) == 1:
        return _from_outputs(pieces, pieces.output(0), scale)
    return _coupled(pieces, scale)


def _uncoupled(pieces: Pieces, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Accumulate piece by piece: means weighted by rows, sums divided by the whole step's counts."""
    task, report = pieces.task, StepReport()
    counts = task.counts(pieces.batch)
    kept: list[tuple[Batch, dict[str, Tensor]]] = []
    for start in pieces.starts:
        batch = pieces.rows(start)
        output = pieces.output(start)
        seed_stage(pieces.seed, "loss", pieces.step, start // pieces.size)
        share = (min(start + pieces.size, pieces.samples) - start) / pieces.samples
        terms = {
            name: term / counts[name] if name in counts else term * share
            for name, term in named(task.loss(output, batch)).items()
        }
        scale(_total(terms)).backward()
        for name, term in terms.items():
            report.terms[name] = report.terms.get(name, 0) + term.detach()
        kept.append(_keep(task, output, batch))
    report.seen = _joined([seen for seen, _ in kept])
    report.metrics = _joined([metrics for _, metrics in kept])
    return report


def _coupled(pieces: Pieces, scale: Callable[[Tensor], Tensor]) -> StepReport:
    """Predict all pieces without graphs, take the loss over all, and feed its gradients into each piece predicted again.

    (GradCache; Gao et al., 2021.) Norm statistics are put back in between, so that they move once.
    """
    statistics = _norm_statistics(pieces.task)
    with torch.no_grad():
        outputs = [as_dict(pieces.output(start)) for start in pieces.starts]
    for buffer, before in statistics:
        buffer.copy_(before)
    leaves = {
        name: torch.cat([output[name] for output in outputs]).requires_grad_(outputs[0][name].is_floating_point())
        for name in outputs[0]
    }
    report = _from_outputs(pieces, leaves.get("", leaves), scale)
    for start in pieces.starts:
        output = as_dict(pieces.output(start))
        pulled = [
            (output[name], leaf.grad[start : start + pieces.size])
            for name, leaf in leaves.items()
            if leaf.grad is not None and output[name].requires_grad
        ]
        if pulled:
            torch.autograd.backward([tensor for tensor, _ in pulled], [gradient for _, gradient in pulled])
    return report


def _from_outputs(pieces: Pieces, output: Any, scale: Callable[[Tensor], Tensor]) -> StepReport:
    seed_stage(pieces.seed, "loss", pieces.step)
    terms = named(pieces.task.loss(output, pieces.batch))
    scale(_total(terms)).backward()
    seen, metrics = _keep(pieces.task, output, pieces.batch)
    return StepReport({name: term.detach() for name, term in terms.items()}, metrics, seen)


def _keep(task: PretextTask, output: Any, batch: Batch) -> tuple[Batch, dict[str, Tensor]]:
    with torch.no_grad():
        return task.remember(output, batch), task.metrics(output, batch)


def _joined(pieces: list[Any]) -> dict[str, Any]:
    return {name: torch.cat([piece[name] for piece in pieces]) for name in pieces[0]}


def _total(terms: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(terms.values())).sum()


def _norm_statistics(task: PretextTask) -> list[tuple[Tensor, Tensor]]:
    return [
        (buffer, buffer.clone())
        for module in task.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        for buffer in module.buffers(recurse=False)
    ]


def named(loss: Tensor | dict[str, Tensor]) -> dict[str, Tensor]:
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
