"""Clusters of vectors: k-means, the features it is given, and codes that use all clusters alike."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.contract.errors import SslkitError

_AT_ONCE = 2**24  # distances in memory


_ROWS = 2**16  # features in double precision


_SAMPLED = 256  # points of each cluster that the first iterations look at


_SETTLED = 1e-3  # relative gain of an iteration below which no other follows


@dataclass(frozen=True)
class Clusters:
    """Hold what k-means found: `centers` `[K, D]`, the nearest of them for each point, and the sum of squared distances."""

    centers: Tensor
    labels: Tensor
    inertia: float


def kmeans(points: Tensor, clusters: int, iterations: int = 30) -> Clusters:
    """Return clusters of points `[N, D]` by Lloyd's algorithm from k-means++ centers, by torch's seed.

    Iterations run on a sample first, and at the end on all points. A cluster that nobody is nearest to takes over half
    of a large one's points (as in Caron et al., 2018, section 3.3): in the end each has some, unless fewer points differ than
    there are clusters.
    """
    count = len(points)
    assert 1 <= clusters <= count, f"{clusters} clusters of {count} points"
    some = points
    if count > _SAMPLED * clusters:
        some = points[torch.randperm(count)[: _SAMPLED * clusters].to(points.device)]
    centers = _spread(some, clusters)
    stages = [(some, iterations), (points, max(3, iterations // 4))] if some is not points else [(points, iterations)]
    for part, most in stages:
        before = math.inf
        for _ in range(most):
            labels, distances = nearest_center(part, centers)
            inertia = float(distances.sum())
            centers, empty = _means(part, labels, centers)
            if inertia > before * (1 - _SETTLED) and not empty:
                break
            before = inertia
    labels, distances = nearest_center(points, centers)
    for _ in range(10):
        if len(labels.unique()) == clusters:
            break
        centers, _ = _means(points, labels, centers)
        labels, distances = nearest_center(points, centers)
    return Clusters(centers, labels, float(distances.sum()))


def cluster_count(asked: int | Literal["auto"], samples: int, most: int = 100, flag: str = "clusters") -> int:
    """Return how many clusters so many images make; `auto` is a tenth of them, 2 to `most`; raises SslkitError for too many."""
    if asked == "auto":
        return min(most, max(2, samples // 10))
    if asked > samples:
        raise SslkitError(f"{asked:,} are more than the {samples:,} images", f"give at most {samples:,}", flag=flag)
    return asked


def nearest_center(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest of centers `[K, D]` for each of points `[N, D]`, int64 `[N]`, and the squared distance."""
    size = centers.square().sum(dim=1)
    found = [torch.addmm(size, part, centers.T, alpha=-2).min(dim=1) for part in points.split(max(1, _AT_ONCE // len(centers)))]
    labels = torch.cat([nearest.indices for nearest in found])
    distances = torch.cat([nearest.values for nearest in found]) + points.square().sum(dim=1)
    return labels, distances.clamp(min=0)


def whiten(features: Tensor, components: int) -> Tensor:
    """Return features `[N, D]`, on the CPU, as unit vectors of at most `components` uncorrelated values of equal variance.

    (Caron et al., 2018, section 3.3: PCA, whitening, then l2-normalization.)
    """
    mean = features.mean(dim=0)
    covariance = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for part in features.split(_ROWS):  # in double precision, a part at a time
        centered = (part - mean).double()
        covariance += centered.T @ centered / len(features)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    kept = min(components, features.shape[1], max(1, int((values > 1e-7 * values[-1]).sum())))
    axes = (vectors[:, -kept:] / values[-kept:].clamp(min=1e-30).sqrt()).to(features.dtype)
    return F.normalize(torch.cat([(part - mean) @ axes for part in features.split(_ROWS)]), dim=1)


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return codes `[B, K]` of scores `[B, K]`: each row sums to 1, and all columns to about the same.

    (Caron et al., 2020, section 3.1, after Cuturi, 2013; `epsilon` is how smooth the codes are.) In the logarithm, so that no
    temperature overflows.
    """
    codes = scores.detach().to(torch.promote_types(scores.dtype, torch.float32)) / epsilon
    for _ in range(iterations):
        codes = codes - codes.logsumexp(dim=0, keepdim=True)
        codes = codes - codes.logsumexp(dim=1, keepdim=True)
    return codes.exp()


def _means(points: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, bool]:
    """Return the mean of each label's points; labels that nobody has get a large cluster's, both moved apart a little."""
    counts = torch.bincount(labels, minlength=len(centers))
    sums = torch.zeros_like(centers).index_add_(0, labels, points)
    means = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        # Drawn by size, as many as there are of two points and more.
        large = (counts - 1).clamp(min=0).cpu().double()
        drawn = torch.multinomial(large, min(len(empty), int((large > 0).sum()))).to(points.device)
        step = 1e-3 * points.std() * torch.randn(len(drawn), points.shape[1]).to(points)
        means[empty[: len(drawn)]] = means[drawn] + step
        means[drawn] -= step
    return means, len(empty) > 0


def _spread(points: Tensor, clusters: int) -> Tensor:
    """Return first centers: greedy k-means++, the best of a few points each time, or random ones where that takes long.

    (Arthur & Vassilvitskii, 2007, and section 5 there for the greedy kind; as in scikit-learn.)
    """
    if clusters > 2**10:
        return points[torch.randperm(len(points))[:clusters].to(points.device)].clone()
    points = points[torch.randperm(len(points))[: 64 * clusters].to(points.device)]
    sizes = points.square().sum(dim=1)
    places, distance = [torch.zeros((), dtype=torch.int64, device=points.device)], (points - points[0]).square().sum(dim=1)
    draws = torch.rand(clusters, 2 + int(math.log(clusters)), dtype=torch.float64)
    for draw in draws[1:]:
        edges = distance.cpu().double().cumsum(0)
        tried = torch.searchsorted(edges, draw * edges[-1]).clamp(max=len(points) - 1).to(points.device)
        nearer = (sizes[tried, None] + sizes - 2 * points[tried] @ points.T).clamp(min=0).minimum(distance)
        best = nearer.sum(dim=1).argmin()
        places.append(tried[best])
        distance = nearer[best]
    return points[torch.stack(places)]
