"""Are the features alive: looked at during training, without labels, on a fixed batch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def rankme(features: Tensor) -> float:
    """Return the effective rank of features `[N, D]`: exp of their singular values' entropy (RankMe: Garrido et al., 2023)."""
    values = torch.linalg.svdvals(features.double())
    shares = values / values.sum() if values.sum() > 0 else torch.zeros_like(values)
    return float(torch.special.entr(shares).sum().exp())


def deviation(features: Tensor) -> float:
    """Return the mean standard deviation of unit features' dimensions, times √D: 1 if spread evenly, 0 if all are alike."""
    return float(F.normalize(features, dim=1).std(dim=0).mean() * features.shape[1] ** 0.5)


def alignment(first: Tensor, second: Tensor) -> float:
    """Return the mean squared distance of unit features of two views, `[N, D]` each (Wang & Isola, 2020, section 4.1)."""
    return float((F.normalize(first, dim=1) - F.normalize(second, dim=1)).square().sum(dim=1).mean())


def uniformity(features: Tensor) -> float:
    """Return the log of the mean Gaussian potential, t=2, of pairs of unit features (Wang & Isola, 2020, section 4.1)."""
    return float(torch.pdist(F.normalize(features, dim=1)).square().mul(-2).exp().mean().log())
