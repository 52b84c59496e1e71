"""Labels that are probably wrong: those that similar samples do not have."""

import numpy as np
import torch
from numpy.typing import NDArray

from sslkit.evaluation.duplicates import Neighbors
from sslkit.evaluation.knn import tally

_TEMPERATURE = 0.07


def judge_labels(
    neighbors: Neighbors, labels: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    """Return samples, the least plausible label first; how plausible each label is; and the likeliest other class, `[N]` each.

    The plausibility is the share of the votes of the nearest neighbors, weighted by exp(cosine / 0.07); the sample itself has
    none. Of equal shares, the one of which the neighbors agree most on another class comes first.
    """
    known_class = torch.from_numpy(labels)
    votes = tally(known_class[neighbors.places], neighbors.cosines, _TEMPERATURE, classes)
    shares = (votes / votes.sum(dim=1, keepdim=True)).double()
    plausible = shares.gather(1, known_class[:, None])[:, 0].numpy()
    others = shares.scatter(1, known_class[:, None], -1.0)
    agreement, likeliest = others.max(dim=1)
    order: NDArray[np.int64] = np.lexsort((-agreement.numpy(), plausible))
    return order, plausible, likeliest.numpy()
