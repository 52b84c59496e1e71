"""Clusters of vectors."""

import torch
from torch import Tensor


def kmeans(points: Tensor, clusters: int) -> Tensor:
    """Return the centres `[clusters, D]` of points `[N, D]` (Lloyd's algorithm, k-means++; scikit-learn's), by torch's seed."""
    from sklearn.cluster import KMeans  # not at the top: it takes a second to import

    seed = int(torch.randint(2**31, ()))
    found = KMeans(clusters, n_init=1, max_iter=50, random_state=seed).fit(points.double().cpu().numpy())
    return torch.from_numpy(found.cluster_centers_).to(points)
