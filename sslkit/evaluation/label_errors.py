"""Labels that are probably wrong, from the labels of similar samples (confident learning; Northcutt et al., 2021)."""

import numpy as np
import torch
from numpy.typing import NDArray

from sslkit.evaluation.duplicates import Neighbors

_TEMPERATURE = 0.07


def find_label_errors(
    neighbors: Neighbors, labels: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the class that each sample more likely has, -1 where the label stands, and the label's probability, `[N]` each.

    Probabilities are votes of the nearest neighbors, weighted by exp(cosine / 0.07); the sample itself has none. A class is
    likelier if its probability reaches the mean over the samples that are labeled so, and the largest such class counts.
    """
    known = torch.from_numpy(labels)
    weights = ((neighbors.cosines - neighbors.cosines[:, :1]) / _TEMPERATURE).exp()
    votes = torch.zeros(len(labels), classes).scatter_add_(1, known[neighbors.places], weights)
    shares = (votes / votes.sum(dim=1, keepdim=True)).double()
    of_label = shares.gather(1, known[:, None])[:, 0]
    counts = torch.bincount(known, minlength=classes).clamp(min=1)
    usual = torch.zeros(classes, dtype=torch.float64).scatter_add_(0, known, of_label) / counts
    confident = torch.where(shares >= usual, shares, -1.0)
    best, likeliest = confident.max(dim=1)
    wrong = (likeliest != known) & (best >= 0)
    return torch.where(wrong, likeliest, -1).numpy(), of_label.numpy()
