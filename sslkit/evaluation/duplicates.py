"""Which samples are copies of others: equal content, or nearly equal among the nearest neighbors."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.evaluation.knn import chunk_of, largest

_PAIRS = 2**13  # compared by content at once

Likeness = Callable[[Tensor, Tensor], Tensor]  # places of samples, int64 [P] twice -> how alike they are, [P]


@dataclass(frozen=True)
class Neighbors:
    """The nearest neighbors of each sample, nearest first: places and cosines, `[N, k]`."""

    places: Tensor
    cosines: Tensor


def find_neighbors(features: Tensor, count: int) -> Neighbors:
    """Return the `count` nearest neighbors of all samples by unit features `[N, D]`, on the CPU."""
    samples, places, cosines = len(features), list[Tensor](), list[Tensor]()
    count = min(count, samples - 1)
    with show_progress("samples compared", samples) as progress:
        for rows in torch.arange(samples, device=features.device).split(chunk_of(samples)):
            cosine = features[rows] @ features.T
            cosine[rows - rows[0], rows] = -2.0  # not itself
            values, nearest = largest(cosine, count)
            places.append(nearest.cpu())
            cosines.append(values.cpu())
            progress.advance(len(rows))
    return Neighbors(torch.cat(places), torch.cat(cosines))


def find_twins(neighbors: Neighbors, likeness: Likeness, threshold: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the sample that each is a copy of, -1 if there is none, and how alike they are, `[N]` each.

    It is the most alike of those before it that are kept, among pairs of which one is a nearest neighbor of the other.
    """
    samples, width = neighbors.places.shape
    pairs = torch.stack([torch.arange(samples).repeat_interleave(width), neighbors.places.flatten()]).sort(dim=0).values
    pairs = torch.unique(pairs, dim=1)
    values = torch.cat([likeness(later, earlier) for earlier, later in zip(*(row.split(_PAIRS) for row in pairs), strict=True)])
    alike = (values >= threshold).nonzero()[:, 0]
    order = alike[torch.argsort(pairs[1, alike], stable=True)]
    twin, best = np.full(samples, -1), np.zeros(samples)
    for earlier, later, value in zip(*pairs[:, order].tolist(), values[order].double().tolist(), strict=True):
        if twin[earlier] < 0 and value > best[later]:
            twin[later], best[later] = earlier, value
    return twin, best


def first_of_equals(hashes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return for each sample the first with the same content, `[N]`: itself, if there is none before it."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    result: NDArray[np.int64] = first[inverse.reshape(-1)]
    return result
