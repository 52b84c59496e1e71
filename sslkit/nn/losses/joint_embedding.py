"""Losses of joint-embedding and clustering tasks."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def swapped_prediction(scores: Tensor, codes: Tensor, temperature: float) -> Tensor:
    """Return the mean cross-entropy of the codes of some views against what all other views say.

    `scores` `[B, V, K]` of all views, `codes` `[B, A, K]` of the first A of them (Caron et al., 2020, equations 1 and 2,
    and section 3.2 for more than two views).
    """
    said = F.log_softmax(scores / temperature, dim=-1)
    each = -torch.einsum("bak,bvk->av", codes, said) / len(scores)
    others = ~torch.eye(codes.shape[1], scores.shape[1], dtype=torch.bool, device=scores.device)
    return each[others].mean()


def negative_cosine(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean negative cosine of vectors `[..., D]` (Chen & He, 2021, equation 1)."""
    return -F.cosine_similarity(prediction, target, dim=-1).mean()


def barlow_twins(first: Tensor, second: Tensor, redundancy: float) -> dict[str, Tensor]:
    """Return how far the correlations of two views `[B, D]` are from one and from zero (Zbontar et al., 2021, equation 1)."""
    first, second = (F.batch_norm(view, None, None, training=True) for view in (first, second))
    correlation = first.T @ second / len(first)
    diagonal = correlation.diagonal()
    others = correlation.square().sum() - diagonal.square().sum()
    return {"invariance": (diagonal - 1).square().sum(), "redundancy": redundancy * others}


def vicreg(first: Tensor, second: Tensor, deviation: float = 1.0) -> dict[str, Tensor]:
    """Return invariance, variance and covariance of two views `[B, D]`, unweighted (Bardes et al., 2022, equations 1 to 5)."""
    spread = [F.relu(deviation - (view.var(dim=0) + 1e-4).sqrt()).mean() for view in (first, second)]
    covariances = [torch.cov(view.T) for view in (first, second)]
    others = [(one.square().sum() - one.diagonal().square().sum()) / first.shape[1] for one in covariances]
    return {
        "invariance": F.mse_loss(first, second),
        "variance": (spread[0] + spread[1]) / 2,
        "covariance": others[0] + others[1],
    }


def msn(scores: Tensor, target: Tensor, temperature: float) -> dict[str, Tensor]:
    """Return how far views are from their target, and all together from using every prototype alike, in nats.

    `cross_entropy` is that of targets `[B, K]` and scores `[B, V, K]`; `uneven` is log K minus the entropy of the mean
    prediction (Assran et al., 2022, equation 1).
    """
    said = F.log_softmax(scores / temperature, dim=-1)
    mean = said.exp().mean(dim=(0, 1))
    uneven = math.log(scores.shape[-1]) - torch.special.entr(mean).sum()
    return {"cross_entropy": -(target[:, None] * said).sum(dim=-1).mean(), "uneven": uneven}
