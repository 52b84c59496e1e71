"""Sparse codes: the lasso, solved by FISTA (Beck & Teboulle, 2009)."""

import math

import torch
from torch import Tensor

_POWER_STEPS = 20
_MARGIN = 1.02  # power iteration comes from below


def soft_threshold(values: Tensor, threshold: float | Tensor) -> Tensor:
    """Return values moved towards 0 by a threshold, those within it exactly 0."""
    return values.sign() * (values.abs() - threshold).clamp(min=0)


def fista(signals: Tensor, atoms: Tensor, sparsity: float, iterations: int) -> Tensor:
    """Return codes `[N, K]` that minimize ½|x - zD|² + λ|z|₁ for signals x `[N, P]` and atoms D `[K, P]`, λ the `sparsity`.

    (Beck & Teboulle, 2009, section 4, with constant step.) Raises no error where it has not converged: more iterations help.
    """
    gram = atoms @ atoms.T
    step = 1 / (_MARGIN * largest_eigenvalue(gram)).clamp(min=1e-12)
    target = signals @ atoms.T
    code = torch.zeros_like(target)
    ahead, momentum = code, 1.0
    for _ in range(iterations):
        following = soft_threshold(ahead - step * (ahead @ gram - target), sparsity * step)
        after = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = following + (momentum - 1) / after * (following - code)
        code, momentum = following, after
    return code


def largest_eigenvalue(matrix: Tensor) -> Tensor:
    """Return about the largest eigenvalue of a symmetric matrix without negative ones, a scalar, by power iteration."""
    # Not all alike: such a vector may be orthogonal to the one that is sought.
    vector = torch.linspace(1.0, 2.0, len(matrix), dtype=matrix.dtype, device=matrix.device)
    for _ in range(_POWER_STEPS):
        vector = matrix @ vector
        vector = vector / vector.norm().clamp(min=1e-12)
    return vector @ (matrix @ vector)
