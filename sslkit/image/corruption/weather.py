"""Snow, frost, fog and light."""

import math
from functools import cache
from importlib.resources import files
from io import BytesIO

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sslkit.image.corruption import filters
from sslkit.image.corruption.level import Draws, Level

_TEXTURES = (1, 2, 2, 3, 4)  # of the paper's five, two differ in their transparency alone, which its code drops
_WINDOW = 64  # pixels of a texture that cover an image
_LUMINANCE = (0.299, 0.587, 0.114)


def snow(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Add bright streaks that fall, and brighten what lies under them."""
    mean, deviation, size, threshold, radius, length, kept = level.choose(
        (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
    )
    side = images.shape[-1]
    flakes = mean + deviation * draws.normal(1, side, side)
    flakes = filters.zoom(flakes, max(1.0, level.pixels(size)))
    flakes = torch.where(flakes < threshold, 0.0, flakes).clamp(0, 1)
    angles = draws.uniform(-0.75 * math.pi, -0.25 * math.pi)
    flakes = filters.streak(flakes, angles, round(level.pixels(2 * radius)), level.pixels(length))
    whitened = torch.maximum(images, 1.5 * _gray(images) + 0.5)
    return kept * images + (1 - kept) * whitened + flakes + flakes.rot90(2, (2, 3))


def frost(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Add a part of one of five pictures of frost."""
    kept, strength = level.choose(
        ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    )
    textures = _textures()
    which = draws.integers(0, len(_TEXTURES)).tolist()
    corners = draws.integers(0, textures.shape[-1] - _WINDOW + 1, 2).tolist()
    parts = [
        textures[number, :, top : top + _WINDOW, left : left + _WINDOW]
        for number, (top, left) in zip(which, corners, strict=True)
    ]
    side = images.shape[-1]
    layer = F.interpolate(torch.stack(parts).to(images), size=(side, side), mode="bilinear", antialias=True)
    if images.shape[1] != 3:
        layer = _gray(layer)
    return kept * images + strength * layer


def fog(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Add clouds that are rough at every scale."""
    strength, decay = level.choose(
        ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)), ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4))
    )
    brightest = images.amax(dim=(1, 2, 3), keepdim=True)
    clouds = plasma(images.shape[-1], decay, draws)[:, None]
    return (images + strength * clouds) * brightest / (brightest + strength)


def brightness(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Raise the value of each pixel's color; hue and saturation stay."""
    added = level.choose((0.05, 0.1, 0.15, 0.2, 0.3), (0.1, 0.2, 0.3, 0.4, 0.5))
    value = images.amax(dim=1, keepdim=True)
    raised = (value + added).clamp(max=1)
    return torch.where(value > 0, images / value.clamp(min=1e-6) * raised, raised)


def plasma(side: int, decay: float, draws: Draws) -> Tensor:
    """Return clouds by midpoint displacement (diamond-square), `[B, side, side]` in [0, 1]; roughness falls by `decay`."""
    size = 1 << (side - 1).bit_length()
    heights = torch.zeros(len(draws.generators), size, size, device=draws.device)
    step, roughness = size, 100.0
    while step >= 2:
        half, count = step // 2, size // step

        def displace(total: Tensor, count: int = count, roughness: float = roughness) -> Tensor:
            return total / 4 + roughness * draws.uniform(-roughness, roughness, count, count)

        corners = heights[:, ::step, ::step]
        beside = corners + corners.roll(-1, 2)  # each corner and the next in its row
        heights[:, half::step, half::step] = displace(beside + beside.roll(-1, 1))
        centers = heights[:, half::step, half::step]
        heights[:, ::step, half::step] = displace(beside + centers + centers.roll(1, 1))
        below = corners + corners.roll(-1, 1)
        heights[:, half::step, ::step] = displace(below + centers + centers.roll(1, 2))
        step, roughness = half, roughness / decay
    low, high = heights.amin(dim=(1, 2), keepdim=True), heights.amax(dim=(1, 2), keepdim=True)
    return ((heights - low) / (high - low))[:, :side, :side]


def _gray(images: Tensor) -> Tensor:
    """Return the luminance of colors, the mean of other channels, `[B, 1, S, S]`."""
    if images.shape[1] != 3:
        return images.mean(dim=1, keepdim=True)
    weights = torch.tensor(_LUMINANCE, device=images.device)
    return torch.einsum("bchw,c->bhw", images, weights)[:, None]


@cache
def _textures() -> Tensor:
    """Return pictures of frost, `[5, 3, 128, 128]` in [0, 1]."""
    folder = files("sslkit.image.corruption") / "frost"
    pictures = []
    for number in _TEXTURES:
        with Image.open(BytesIO((folder / f"frost{number}.jpg").read_bytes())) as picture:
            pictures.append(np.asarray(picture.convert("RGB")))
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 255
