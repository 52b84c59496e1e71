"""Linear classifiers by L-BFGS: the optimum of scikit-learn's LogisticRegression and LinearSVC, all classes at once.

Both objectives are convex, so it does not matter how the optimum is found, and a solution for one C is a good start for
the next. Of two classes scikit-learn penalizes one vector of weights where both are here: C counts as its 2C. Everything
runs on one device, in chunks of rows: beside the features, memory holds weights and one chunk of scores.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

_CHUNK = 2**24  # values of features, or of scores, in a chunk of rows: 64 MB
_HISTORY = 10  # steps that L-BFGS remembers, each as large as the weights, twice
_SMALLEST_CHANGE = 1e-9  # of the objective, at which the search ends
_RESIDENT = 0.6  # share of a GPU's free memory that features may take to stay there; others are copied chunk by chunk

Loss = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]  # scores [N, classes], labels [N] -> losses [N], their gradient


def cross_entropy(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the softmax cross-entropy `[N]` of scores `[N, classes]`, and its gradient; the scores are overwritten."""
    total = scores.logsumexp(dim=1, keepdim=True)
    losses = (total - scores.gather(1, labels[:, None]))[:, 0]
    gradient = scores.sub_(total).exp_()
    return losses, gradient.scatter_add_(1, labels[:, None], -torch.ones_like(total))


def squared_hinge(scores: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return the squared hinge loss `[N]` of each class against the rest, summed over classes, and its gradient.

    The scores `[N, classes]` are overwritten.
    """
    margins = scores.add_(1)  # of the classes that a sample does not have
    actual = (2 - margins.gather(1, labels[:, None])).clamp_(min=0)
    margins.clamp_(min=0).scatter_(1, labels[:, None], actual)
    losses = margins.square().sum(dim=1)
    return losses, margins.mul_(2).scatter_(1, labels[:, None], -2 * actual)


@dataclass(frozen=True)
class Standardized:
    """Features `[N, D]` that are standardized chunk by chunk, so that there is no second copy.

    `rows` selects samples: int64 places, None for all.
    """

    features: Tensor
    mean: Tensor  # [D]
    deviation: Tensor  # [D]
    device: torch.device
    rows: Tensor | None = None

    @classmethod
    def of(cls, features: Tensor, device: torch.device, rows: Tensor | None = None) -> "Standardized":
        """Return features with their mean and deviation, or those of some rows; on the device if they fit there."""
        resident = keep_on_device(features, device)
        return cls(resident, *statistics(resident, device, rows), device)

    def select(self, rows: Tensor) -> "Standardized":
        """Return some of the samples, standardized in the same way."""
        return replace(self, rows=rows.to(self.features.device))

    def __len__(self) -> int:
        return len(self.features) if self.rows is None else len(self.rows)

    def chunks(self, classes: int = 1) -> Iterator[tuple[Tensor, slice]]:
        """Deliver chunks of standardized features, float32 `[n, D]` on the device, and their places.

        They are so small that neither they nor scores of them, `[n, classes]`, take much memory.
        """
        for features, places in _chunks(self.features, self.rows, self.device, classes):
            yield features.sub(self.mean).div_(self.deviation), places

    def batch(self, places: Tensor) -> Tensor:
        """Return the standardized features at some places, `[n, D]` on the device."""
        rows = places.to(self.features.device)
        rows = rows if self.rows is None else self.rows[rows]
        return self.features[rows].to(self.device, torch.float32).sub_(self.mean).div_(self.deviation)

    @cached_property
    def covariance(self) -> Tensor:
        """Return the products of standardized features, `[D, D]`, over the number of samples."""
        width = self.features.shape[1]
        total = torch.zeros(width, width, dtype=accumulation_type(self.device), device=self.device)
        for features, _ in self.chunks():
            total += features.T @ features
        return total.div_(len(self))


def keep_on_device(features: Tensor, device: torch.device) -> Tensor:
    """Return features on the device, or on the CPU if they would take most of a GPU's free memory."""
    if device.type == "cuda" and features.nbytes > _RESIDENT * torch.cuda.mem_get_info(device)[0]:
        return features
    return features.to(device)


def statistics(features: Tensor, device: torch.device, rows: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return mean and deviation `[D]` of features `[N, D]`, or of some rows, float32 on the device.

    They are accumulated in two passes and in float64: the mean of many float32 would lose digits.
    """
    precise, count = accumulation_type(device), len(features) if rows is None else len(rows)
    mean, variance = torch.zeros(2, features.shape[1], dtype=precise, device=device)
    for chunk, _ in _chunks(features, rows, device):
        mean += chunk.sum(dim=0, dtype=precise) / count
    for chunk, _ in _chunks(features, rows, device):
        variance += (chunk.to(precise) - mean).square_().sum(dim=0) / count  # no view of the features may be changed
    return mean.float(), (variance.sqrt() + 1e-6).float()


def accumulation_type(device: torch.device) -> torch.dtype:
    """Return the type of weights and sums: float64, of which an Apple GPU has none."""
    return torch.float32 if device.type == "mps" else torch.float64


def fit_linear(
    data: Standardized,
    labels: Tensor,
    classes: int,
    c: float,
    loss: Loss,
    iterations: int = 300,
    start: Tensor | None = None,
    report: Callable[[float], None] = lambda objective: None,
) -> Tensor:
    """Return weights `[D + 1, classes]`, the intercept last: the minimum of mean loss + ½‖w‖² / (N·C) (intercepts are free).

    Labels are int64 `[N]` on the device. Weights, their gradient and sums are float64, products float32. `start` are weights
    of a similar problem; `iterations` bounds the search; `report` is called with every value of the objective.
    """
    samples, width, decay = len(data), data.features.shape[1], 1 / (c * len(data))
    factor = _preconditioner(data, classes, decay)
    precise = factor.dtype
    weights = torch.zeros(width + 1, classes, dtype=precise, device=data.device) if start is None else start.clone()
    slope, shift = factor.T @ weights[:-1], weights[-1:] / classes**0.5  # what is searched: better conditioned

    def unscaled() -> tuple[Tensor, Tensor]:
        return torch.linalg.solve_triangular(factor.T, slope, upper=True), shift * classes**0.5

    def objective() -> float:
        weight, intercept = unscaled()
        value, slope_gradient = torch.zeros((), dtype=precise, device=data.device), weight * decay
        intercept_gradient = torch.zeros_like(intercept)
        single, single_intercept = weight.float(), intercept.float()
        for features, places in data.chunks(classes):
            losses, gradient = loss(torch.addmm(single_intercept, features, single), labels[places])
            value += losses.sum(dtype=precise) / samples
            slope_gradient += (features.T @ gradient).to(precise).div_(samples)
            intercept_gradient += gradient.sum(dim=0, keepdim=True, dtype=precise).div_(samples)
        slope.grad = torch.linalg.solve_triangular(factor, slope_gradient, upper=False).contiguous()
        shift.grad = intercept_gradient * classes**0.5
        total = float(value + 0.5 * decay * weight.square().sum())
        report(total)
        return total

    torch.optim.LBFGS(
        [slope, shift],
        max_iter=iterations,
        max_eval=2 * iterations,
        tolerance_grad=1e-10,
        tolerance_change=_SMALLEST_CHANGE,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    ).step(objective)
    solution: Tensor = torch.cat(unscaled())
    return solution


def _preconditioner(data: Standardized, classes: int, decay: float) -> Tensor:
    """Return the Cholesky factor `[D, D]` of about the Hessian at the start, without which correlated features take long.

    With all classes as likely, the Hessian of the cross-entropy for one class is the features' covariance over the classes'
    number; the weight of the penalty is added.
    """
    hessian = data.covariance / classes
    hessian.diagonal().add_(decay + 1e-5 * hessian.diagonal().mean())  # products in float32 may leave eigenvalues below zero
    factor: Tensor = torch.linalg.cholesky(hessian)
    return factor


@torch.no_grad()
def linear_scores(weights: Tensor, data: Standardized) -> Iterator[Tensor]:
    """Deliver class scores, float32 `[n, classes]` on the device, chunk by chunk."""
    single = weights.float()
    for features, _ in data.chunks(weights.shape[1]):
        yield torch.addmm(single[-1:], features, single[:-1])


def _chunks(features: Tensor, rows: Tensor | None, device: torch.device, classes: int = 1) -> Iterator[tuple[Tensor, slice]]:
    """Deliver features `[n, D]` on the device, of all samples or some rows, and their places among these."""
    length = max(1, _CHUNK // max(features.shape[1], classes))
    rows = None if rows is None else rows.to(features.device)
    for start in range(0, len(features) if rows is None else len(rows), length):
        places = slice(start, start + length)
        yield features[places if rows is None else rows[places]].to(device, torch.float32), places
