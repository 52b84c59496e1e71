"""Linear classifiers by L-BFGS: the optimum of scikit-learn's LogisticRegression and LinearSVC, all classes at once.

Both objectives are convex, so it does not matter how the optimum is found, and a solution for one C is a good start for
the next: seconds for what takes liblinear minutes (8,000 × 768 features, ten classes).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Matrix = NDArray[np.floating[Any]]


Loss = Callable[[Matrix, Matrix], tuple[float, Matrix]]  # scores and targets (0 or 1), [N, classes] -> loss, its gradient


def cross_entropy(scores: Matrix, targets: Matrix) -> tuple[float, Matrix]:
    """Return softmax cross-entropy, the mean over samples, and its gradient."""
    scores = scores - scores.max(axis=1, keepdims=True)
    logarithms = scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))
    return float(-(logarithms * targets).sum() / len(scores)), (np.exp(logarithms) - targets) / len(scores)


def squared_hinge(scores: Matrix, targets: Matrix) -> tuple[float, Matrix]:
    """Return the squared hinge loss of each class against the rest, summed over classes, and its gradient."""
    signs = 2 * targets - 1
    margins = np.maximum(1 - signs * scores, 0)
    return float((margins**2).sum() / len(scores)), -2 * signs * margins / len(scores)


def fit_linear(
    features: Matrix,
    labels: NDArray[np.int64],
    classes: int,
    c: float,
    loss: Loss,
    iterations: int = 300,
    start: Matrix | None = None,
) -> Matrix:
    """Return weights `[D + 1, classes]`, the intercept last: the minimum of N·C·loss + ½‖w‖² (intercepts are free).

    Features are `[N, D]`; `start` are weights of a similar problem; `iterations` bounds the search.
    """
    from scipy.optimize import minimize
    from threadpoolctl import threadpool_limits

    samples, width = features.shape
    data = torch.from_numpy(np.ascontiguousarray(features, dtype=np.float32))
    targets, decay = np.eye(classes)[labels], 1 / (c * samples)

    def objective(flat: Matrix) -> tuple[float, Matrix]:
        weights = flat.reshape(width + 1, classes)
        slope, intercept = weights[:-1], weights[-1:]
        value, gradient = loss(_product(data, slope) + intercept, targets)
        change = _product(data.T, gradient) + decay * slope
        full_gradient = np.concatenate([change, gradient.sum(axis=0, keepdims=True)])
        return value + 0.5 * decay * float((slope**2).sum()), full_gradient.ravel()

    first = np.zeros((width + 1, classes)) if start is None else start
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": 1e-5, "ftol": 1e-8}
    # Two pools of BLAS threads, NumPy's and SciPy's, wait for each other in a loop: ten times slower on two cores.
    with threadpool_limits(1, "blas"):
        solution = minimize(objective, first.ravel(), jac=True, method="L-BFGS-B", options=options)
    weights: Matrix = solution.x.reshape(width + 1, classes)
    return weights


def _product(left: torch.Tensor, right: Matrix) -> Matrix:
    """Return a product of matrices in float64, computed in float32 by torch's threads."""
    product: Matrix = (left @ torch.from_numpy(right.astype(np.float32))).numpy().astype(np.float64)
    return product


def linear_scores(weights: Matrix, features: Matrix) -> Matrix:
    """Return class scores `[N, classes]`."""
    scores: Matrix = features @ weights[:-1] + weights[-1:]
    return scores
