"""Blur of lenses and movement."""

import math

import numpy as np
import torch
from torch import Tensor

from sslkit.image.corruption import filters
from sslkit.image.corruption.level import Draws, Level


def defocus_blur(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Blur by a disk, as a lens out of focus does."""
    radius, smoothing = level.choose(
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    )
    radius = level.pixels(radius)
    edge = 1 if radius <= 8 else 2  # pixels by which the edge of the disk is smoothed
    reach = min(math.ceil(radius) + edge, images.shape[-1] - 1)
    at = torch.arange(-reach, reach + 1)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).float()
    smooth = filters.gaussian(smoothing, edge)
    disk = filters.convolve(filters.convolve(disk[None, None], smooth), smooth.T)[0, 0]
    return filters.convolve(images, disk / disk.sum())


def glass_blur(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Copy to each pixel one nearby, between two blurs, as frosted glass does.

    The published code means to swap the two, but what it swaps are views: it copies. So does this.
    """
    deviation, distance, rounds = level.choose(
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    )
    deviation, distance, side = level.pixels(deviation), max(1, round(level.pixels(distance))), images.shape[-1]
    blurred = filters.blur(images, deviation)
    batch = np.arange(len(images))
    sources = np.broadcast_to(np.arange(side * side)[:, None], (side * side, len(batch))).copy()  # of each pixel, by image
    for _ in range(rounds):
        down, across = draws.integers(-distance, distance, 2, side, side).cpu().numpy().transpose(1, 2, 3, 0)
        steps = side * down + across
        for row in range(side - distance, distance, -1):  # one after the other: what was copied may be copied again
            for column in range(side - distance, distance, -1):
                pixel = row * side + column
                sources[pixel] = sources[pixel + steps[row, column], batch]
    places = torch.from_numpy(sources.T.copy()).to(images.device)[:, None].expand(-1, images.shape[1], -1)
    return filters.blur(blurred.flatten(2).gather(2, places).view(images.shape), deviation)


def motion_blur(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Blur in one direction, within 45 degrees of the horizontal, as a moving camera does."""
    radius, deviation = level.choose(
        ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)), ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15))
    )
    angles = draws.uniform(-math.pi / 4, math.pi / 4)
    return filters.streak(images, angles, round(level.pixels(2 * radius)), level.pixels(deviation))


def zoom_blur(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Average over zooms, as a camera that moves towards a thing does."""
    largest, step = level.choose(
        ((0.05, 0.01), (0.10, 0.01), (0.15, 0.01), (0.20, 0.01), (0.25, 0.01)),
        ((0.10, 0.01), (0.15, 0.01), (0.20, 0.02), (0.24, 0.02), (0.30, 0.03)),
    )
    zooms = [1 + step * number for number in range(round(largest / step) + 1)]
    total = images + sum(filters.zoom(images, zoom) for zoom in zooms)
    return total / (len(zooms) + 1)
