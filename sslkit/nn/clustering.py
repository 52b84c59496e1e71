"""k-means, whitening of the features it clusters, and Sinkhorn-Knopp codes."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.nn.precision import widen

_MAX_DISTANCES = 2**24  # distances in memory


_MAX_ROWS = 2**16  # features in double precision


_POINTS_PER_CLUSTER = 256  # sampled for the first iterations


_TOLERANCE = 1e-3  # relative gain of an iteration below which k-means stops


@dataclass(frozen=True)
class KMeansResult:
    """Result of k-means: `centers` `[K, D]`, the nearest center of each point `[N]`, and the sum of squared distances."""

    centers: Tensor
    labels: Tensor
    inertia: float


def kmeans(points: Tensor, clusters: int, iterations: int = 30) -> KMeansResult:
    """Cluster points `[N, D]` by Lloyd's algorithm from k-means++ centers, seeded by torch's generator.

    Iterations run on a sample first, and at the end on all points. An empty cluster takes over half of the points of a
    large one (as in Caron et al., 2018, section 3.3): in the end no cluster is empty, unless there are fewer distinct
    points than clusters.
    """
    count = len(points)
    assert 1 <= clusters <= count, f"{clusters} clusters of {count} points"
    sample = points
    if count > _POINTS_PER_CLUSTER * clusters:
        sample = points[torch.randperm(count)[: _POINTS_PER_CLUSTER * clusters].to(points.device)]
    centers = _initial_centers(sample, clusters)
    stages = [(sample, iterations), (points, max(3, iterations // 4))] if sample is not points else [(points, iterations)]
    for stage_points, max_iterations in stages:
        previous = math.inf
        for _ in range(max_iterations):
            labels, distances = nearest_center(stage_points, centers)
            inertia = float(distances.sum())
            centers, had_empty = _means(stage_points, labels, centers)
            if inertia > previous * (1 - _TOLERANCE) and not had_empty:
                break
            previous = inertia
    labels, distances = nearest_center(points, centers)
    for _ in range(10):
        if len(labels.unique()) == clusters:
            break
        centers, _ = _means(points, labels, centers)
        labels, distances = nearest_center(points, centers)
    return KMeansResult(centers, labels, float(distances.sum()))


def cluster_count(requested: int | Literal["auto"], samples: int, maximum: int = 100, flag: str = "clusters") -> int:
    """Return the number of clusters for so many samples; `auto` is a tenth of them, from 2 to `maximum`.

    Raises SslkitError if there are more clusters than samples.
    """
    if requested == "auto":
        return min(maximum, max(2, samples // 10))
    if requested > samples:
        raise SslkitError(f"{requested:,} exceeds the {samples:,} training samples", f"use at most {samples:,}", flag=flag)
    return requested


def nearest_center(points: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest of centers `[K, D]` for each of points `[N, D]`, int64 `[N]`, and its squared distance `[N]`."""
    squared_norms = centers.square().sum(dim=1)
    chunks = points.split(max(1, _MAX_DISTANCES // len(centers)))
    minima = [torch.addmm(squared_norms, chunk, centers.T, alpha=-2).min(dim=1) for chunk in chunks]
    labels = torch.cat([minimum.indices for minimum in minima])
    distances = torch.cat([minimum.values for minimum in minima]) + points.square().sum(dim=1)
    return labels, distances.clamp(min=0)


def whiten(features: Tensor, components: int) -> Tensor:
    """Return features `[N, D]`, on the CPU, reduced to at most `components` whitened principal components of unit length.

    (Caron et al., 2018, section 3.3: PCA, whitening, then l2-normalization.)
    """
    mean = features.mean(dim=0)
    covariance = torch.zeros(features.shape[1], features.shape[1], dtype=torch.float64)
    for chunk in features.split(_MAX_ROWS):  # in double precision, a chunk at a time
        centered = (chunk - mean).double()
        covariance += centered.T @ centered / len(features)
    values, vectors = torch.linalg.eigh(covariance)  # ascending
    kept = min(components, features.shape[1], max(1, int((values > 1e-7 * values[-1]).sum())))
    axes = (vectors[:, -kept:] / values[-kept:].clamp(min=1e-30).sqrt()).to(features.dtype)
    return F.normalize(torch.cat([(chunk - mean) @ axes for chunk in features.split(_MAX_ROWS)]), dim=1)


def sinkhorn(scores: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Return codes `[B, K]` of scores `[B, K]` by Sinkhorn-Knopp: rows sum to 1, columns to nearly equal values.

    (Caron et al., 2020, section 3.1, after Cuturi, 2013; `epsilon` weights the entropy: larger values give smoother codes.)
    Computed in log space, so that no temperature overflows.
    """
    codes = widen(scores.detach()) / epsilon
    for _ in range(iterations):
        codes = codes - codes.logsumexp(dim=0, keepdim=True)
        codes = codes - codes.logsumexp(dim=1, keepdim=True)
    return codes.exp()


def _means(points: Tensor, labels: Tensor, centers: Tensor) -> tuple[Tensor, bool]:
    """Return the mean of each cluster, and whether any was empty; those get a large cluster's mean, both slightly shifted."""
    counts = torch.bincount(labels, minlength=len(centers))
    sums = torch.zeros_like(centers).index_add_(0, labels, points)
    means = sums / counts.clamp(min=1)[:, None]
    empty = (counts == 0).nonzero()[:, 0]
    if len(empty):
        # Sampled in proportion to size, from clusters with at least two points.
        weights = (counts - 1).clamp(min=0).cpu().double()
        split = torch.multinomial(weights, min(len(empty), int((weights > 0).sum()))).to(points.device)
        offset = 1e-3 * points.std() * torch.randn(len(split), points.shape[1]).to(points)
        means[empty[: len(split)]] = means[split] + offset
        means[split] -= offset
    return means, len(empty) > 0


def _initial_centers(points: Tensor, clusters: int) -> Tensor:
    """Return centers by greedy k-means++ (the best of a few candidates each time), or random points for many clusters.

    (Arthur & Vassilvitskii, 2007, and section 5 there for the greedy variant; as in scikit-learn.)
    """
    if clusters > 2**10:
        return points[torch.randperm(len(points))[:clusters].to(points.device)].clone()
    points = points[torch.randperm(len(points))[: 64 * clusters].to(points.device)]
    squared_norms = points.square().sum(dim=1)
    chosen, distance = [torch.zeros((), dtype=torch.int64, device=points.device)], (points - points[0]).square().sum(dim=1)
    uniform = torch.rand(clusters, 2 + int(math.log(clusters)), dtype=torch.float64)
    for quantiles in uniform[1:]:
        cumulative = distance.cpu().double().cumsum(0)
        candidates = torch.searchsorted(cumulative, quantiles * cumulative[-1]).clamp(max=len(points) - 1).to(points.device)
        to_candidates = squared_norms[candidates, None] + squared_norms - 2 * points[candidates] @ points.T
        nearest = to_candidates.clamp(min=0).minimum(distance)
        best = nearest.sum(dim=1).argmin()
        chosen.append(candidates[best])
        distance = nearest[best]
    return points[torch.stack(chosen)]
