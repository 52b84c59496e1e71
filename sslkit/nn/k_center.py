"""A few points that all others are near to."""

import torch
from torch import Tensor

from sslkit.console import show_progress


def k_center(points: Tensor, count: int, first: int, title: str) -> Tensor:
    """Return places of `count` points `[P, D]`: the first, then always the one farthest from all chosen ones, int64 `[count]`.

    (Greedy k-center; Gonzalez, 1985; Sener & Savarese, 2018.) Distances are Euclidean.
    """
    squares = points.square().sum(dim=1)
    chosen, nearest = [first], _squared_distance(points, squares, first)
    with show_progress(title, count) as progress:
        for _ in range(count - 1):
            place = int(nearest.argmax())
            chosen.append(place)
            nearest = torch.minimum(nearest, _squared_distance(points, squares, place))
            progress.advance(1)
    return torch.tensor(chosen)


def _squared_distance(points: Tensor, squares: Tensor, place: int) -> Tensor:
    return squares - 2 * (points @ points[place]) + squares[place]
