"""Changes of point clouds `[B, N, 3 + F]`, batched on the device."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.points.neighborhoods import take


def rotate(points: Tensor, angle: Tensor) -> Tensor:
    """Return points `[B, N, 3 + F]` turned around the vertical axis, z, by angles `[B]`."""
    x, y, z = points[..., :3].unbind(2)
    cosine, sine = angle.cos()[:, None], angle.sin()[:, None]
    turned = torch.stack([x * cosine - y * sine, x * sine + y * cosine, z], dim=2)
    return torch.cat([turned, points[..., 3:]], dim=2)


def rotate_freely(points: Tensor) -> Tensor:
    """Return points turned by uniformly random rotations (Shoemake, 1992: from random unit quaternions)."""
    w, x, y, z = F.normalize(torch.randn(len(points), 4, device=points.device), dim=1).unbind(1)
    matrix = torch.stack(
        [
            torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=1),
            torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=1),
            torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=1),
        ],
        dim=1,
    )
    return torch.cat([points[..., :3] @ matrix.transpose(1, 2), points[..., 3:]], dim=2)


def rotate_randomly(points: Tensor) -> Tensor:
    """Return points turned around the vertical axis by random angles."""
    return rotate(points, 2 * math.pi * torch.rand(len(points), device=points.device))


def flip(points: Tensor) -> Tensor:
    """Return points mirrored along each horizontal axis with probability 1/2."""
    signs = torch.ones(len(points), 1, points.shape[2], device=points.device)
    signs[..., :2] = torch.randint(0, 2, (len(points), 1, 2), device=points.device) * 2 - 1
    return points * signs


def scale(points: Tensor, low: float = 0.8, high: float = 1.2) -> Tensor:
    """Return points scaled by a factor for each cloud."""
    factors = torch.ones(len(points), 1, points.shape[2], device=points.device)
    factors[..., :3] = low + (high - low) * torch.rand(len(points), 1, 1, device=points.device)
    return points * factors


def jitter(points: Tensor, deviation: float = 0.01) -> Tensor:
    """Return points that are each moved a little."""
    coordinates = points[..., :3] + deviation * torch.randn((*points.shape[:2], 3), device=points.device)
    return torch.cat([coordinates, points[..., 3:]], dim=2)


def visible_points(points: Tensor, pixels: int = 24) -> Tensor:
    """Return which points a camera far away in a random direction sees, bool `[B, N]`.

    A depth map of so many pixels a side keeps the smallest depth in each; points that lie further behind it are hidden.
    """
    turned = rotate_freely(points[..., :3])
    column, row = (((turned[..., axis] + 1) / 2 * pixels).long().clamp(0, pixels - 1) for axis in range(2))
    depth, pixel = turned[..., 2].contiguous(), row * pixels + column
    smallest = torch.full((len(points), pixels * pixels), torch.inf, device=points.device)
    smallest = smallest.scatter_reduce(1, pixel, depth, "amin")
    return depth <= smallest.gather(1, pixel) + 2 / pixels  # a surface may be as deep as a pixel is wide


def in_random_cuboid(points: Tensor, usable: Tensor, smallest: float) -> Tensor:
    """Return which usable points lie in a random cuboid, bool `[B, N]`: a share of them from `smallest` to 1.

    It lies around a random usable point; its sides differ by a factor of 2 at most.
    """
    sides = 0.5 + 0.5 * torch.rand(len(points), 1, 3, device=points.device)
    distance = ((points[..., :3] - _random_point(points, usable)) / sides).abs().amax(dim=2)
    share = smallest + (1 - smallest) * torch.rand(len(points), 1, device=points.device)
    return usable & (_ranks(distance, usable) < (share * usable.sum(dim=1, keepdim=True)).ceil())


def outside_random_ball(points: Tensor, usable: Tensor, share: float) -> Tensor:
    """Return the usable points without the share of them that is nearest to a random one, bool `[B, N]`."""
    distance = (points[..., :3] - _random_point(points, usable)).square().sum(dim=2)
    return usable & (_ranks(distance, usable) >= (share * usable.sum(dim=1, keepdim=True)).floor())


def choose_points(points: Tensor, usable: Tensor, count: int) -> Tensor:
    """Return `count` random usable points in random order, `[B, count, 3 + F]`; all at most once if there are enough."""
    order = torch.rand(usable.shape, device=points.device).masked_fill(~usable, 2.0).argsort(dim=1)
    places = torch.arange(count, device=points.device) % usable.sum(dim=1, keepdim=True)
    return take(points, order.gather(1, places))


def _random_point(points: Tensor, usable: Tensor) -> Tensor:
    """Return the coordinates of a random usable point, `[B, 1, 3]`."""
    return choose_points(points[..., :3], usable, 1)


def _ranks(values: Tensor, usable: Tensor) -> Tensor:
    """Return the place of each value among the usable ones of its row, smallest first; the others come after them."""
    return values.masked_fill(~usable, torch.inf).argsort(dim=1).argsort(dim=1)
