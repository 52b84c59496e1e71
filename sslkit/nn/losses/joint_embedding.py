"""Losses of joint-embedding and clustering tasks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of the codes of some views and the predictions from all other views.

    `scores` `[B, V, K]` of all views, `codes` `[B, A, K]` of the first A of them (Caron et al., 2020, equations 1 and 2,
    and section 3.2 for more than two views).
    """
    log_probs = F.log_softmax(scores / temperature, dim=-1)
    pairs = -torch.einsum("bak,bvk->av", codes, log_probs) / len(scores)
    views, targets = scores.shape[1], codes.shape[1]
    same_view = torch.eye(targets, views, dtype=torch.bool, device=scores.device)
    return pairs.masked_fill(same_view, 0).sum() / (targets * (views - 1))


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative cosine similarity of vectors `[..., D]` (Chen & He, 2021, equation 1)."""
    return -F.cosine_similarity(prediction, target, dim=-1).mean()


def barlow_twins(first: Tensor, second: Tensor, redundancy: float) -> dict[str, Tensor]:
    """Return both terms of the distance between the cross-correlation of two views `[B, D]` and the identity.

    `invariance` covers the diagonal, `redundancy` the other entries, weighted (Zbontar et al., 2021, equation 1).
    """
    first, second = (F.batch_norm(view, None, None, training=True) for view in (first, second))
    correlation = first.T @ second / len(first)
    diagonal = correlation.diagonal()
    off_diagonal = correlation.square().sum() - diagonal.square().sum()
    return {"invariance": (diagonal - 1).square().sum(), "redundancy": redundancy * off_diagonal}


def vicreg(first: Tensor, second: Tensor, deviation: float = 1.0) -> dict[str, Tensor]:
    """Return invariance, variance and covariance of two views `[B, D]`, unweighted (Bardes et al., 2022, equations 1 to 5)."""
    hinges = [F.relu(deviation - (view.var(dim=0) + 1e-4).sqrt()).mean() for view in (first, second)]
    centered = [view - view.mean(dim=0) for view in (first, second)]  # torch.cov waits for the device
    covariances = [view.T @ view / (len(view) - 1) for view in centered]
    off_diagonal = [(matrix.square().sum() - matrix.diagonal().square().sum()) / first.shape[1] for matrix in covariances]
    return {
        "invariance": F.mse_loss(first, second),
        "variance": (hinges[0] + hinges[1]) / 2,
        "covariance": off_diagonal[0] + off_diagonal[1],
    }


def msn(scores: Tensor, target: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return the cross-entropy of views with their targets, and how far prototypes are from even use, both in nats.

    `cross_entropy` is that of targets `[B, K]` and scores `[B, V, K]`; `entropy_gap` is log K minus the entropy of the
    mean prediction (Assran et al., 2022, equation 1).
    """
    log_probs = F.log_softmax(scores / temperature, dim=-1)
    mean = log_probs.exp().mean(dim=(0, 1))
    entropy_gap = math.log(scores.shape[-1]) - torch.special.entr(mean).sum()
    return {"cross_entropy": -(target[:, None] * log_probs).sum(dim=-1).mean(), "entropy_gap": entropy_gap}
