"""Points that are spread over a cloud, and those nearest to them."""

import torch
from torch import Tensor

from sslkit.nn.precision import widen


def take(values: Tensor, rows: Tensor) -> Tensor:
    """Return the values `[B, N, D]` at `rows` `[B, ...]`, `[B, ..., D]`."""
    chosen: Tensor = values.gather(1, rows.flatten(1)[..., None].expand(-1, -1, values.shape[2]))
    return chosen.view(*rows.shape, values.shape[2])


def squared_distances(first: Tensor, second: Tensor) -> Tensor:
    """Return squared distances between points `[B, N, 3]` and `[B, M, 3]`, `[B, N, M]`, not in half precision.

    By differences: the faster way, by a matrix product, is wrong by more than the distance of neighbors.
    """
    x, y, z = (
        (a[..., None] - b[:, None]).square() for a, b in zip(widen(first).unbind(2), widen(second).unbind(2), strict=True)
    )
    return x + y + z


@torch.no_grad()
def farthest_points(coordinates: Tensor, count: int) -> Tensor:
    """Return the rows of `count` points `[B, count]`, each the farthest from those before (Eldar et al., 1997).

    The first is the one farthest from the mean, so that the order of points changes nothing.
    """
    coordinates = widen(coordinates)
    batch = torch.arange(coordinates.shape[0], device=coordinates.device)
    current = (coordinates - coordinates.mean(dim=1, keepdim=True)).square().sum(dim=2).argmax(dim=1)
    distance = torch.full(coordinates.shape[:2], torch.inf, device=coordinates.device)
    rows = [current]
    for _ in range(count - 1):
        distance = torch.minimum(distance, (coordinates - coordinates[batch, current][:, None]).square().sum(dim=2))
        current = distance.argmax(dim=1)
        rows.append(current)
    return torch.stack(rows, dim=1)


@torch.no_grad()
def nearest_points(centers: Tensor, coordinates: Tensor, count: int) -> Tensor:
    """Return the rows of the `count` points `[B, N, 3]` nearest to each center `[B, M, 3]`, `[B, M, count]`, nearest first."""
    return squared_distances(centers, coordinates).topk(count, dim=2, largest=False).indices


def interpolate(points: Tensor, centers: Tensor, values: Tensor) -> Tensor:
    """Return values `[B, N, D]` at points, of the three nearest centers by their inverse squared distance.

    (Qi et al., 2017b, equation 2.)
    """
    with torch.no_grad():
        nearest = squared_distances(points, centers).topk(min(3, centers.shape[1]), dim=2, largest=False)
        weights = 1 / nearest.values.clamp(min=1e-8)
        weights = (weights / weights.sum(dim=2, keepdim=True)).to(values.dtype)
    return (take(values, nearest.indices) * weights[..., None]).sum(dim=2)
