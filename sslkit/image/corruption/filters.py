"""Filters that several corruptions use."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from scipy.fft import dctn, idctn
from torch import Tensor


def convolve(images: Tensor, kernel: Tensor, edges: str = "reflect") -> Tensor:
    """Return images `[B, C, S, S]`, each channel filtered by a kernel `[h, w]` of odd sides that add up to 1."""
    down, across = kernel.shape[0] // 2, kernel.shape[1] // 2
    single = F.pad(images.flatten(0, 1)[:, None], (across, across, down, down), mode=edges)
    filtered: Tensor = F.conv2d(single, kernel.to(images)[None, None])
    return filtered.view(images.shape)


def gaussian(deviation: float, reach: int | None = None) -> Tensor:
    """Return a Gaussian as a kernel `[1, 2 * reach + 1]`; it reaches over four deviations unless told."""
    reach = max(1, math.ceil(4 * deviation)) if reach is None else reach
    values = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / deviation) ** 2)
    return (values / values.sum())[None]


def blur(images: Tensor, deviation: float) -> Tensor:
    """Return images `[B, C, S, S]` blurred by a Gaussian."""
    kernel = gaussian(deviation)
    return convolve(convolve(images, kernel, "replicate"), kernel.T, "replicate")


def blur_fields(fields: Tensor, deviation: float) -> Tensor:
    """Return fields `[B, n, S, S]` blurred by a Gaussian of any width, by the cosine transform: edges mirror."""
    if deviation <= 0:
        return fields
    frequency = math.pi * np.arange(fields.shape[-1]) / fields.shape[-1]
    damping = np.exp(-0.5 * (deviation * frequency) ** 2).astype(np.float32)
    spectrum = dctn(fields.cpu().numpy(), axes=(2, 3), norm="ortho") * damping[:, None] * damping
    return torch.from_numpy(idctn(spectrum, axes=(2, 3), norm="ortho")).to(fields)


def zoom(images: Tensor, factor: float) -> Tensor:
    """Return the middle of images `[B, C, S, S]`, enlarged by a factor."""
    return sample(images, grid(images) / factor)


def streak(images: Tensor, angles: Tensor, reach: int, deviation: float) -> Tensor:
    """Return images `[B, C, S, S]` blurred in one direction: angles `[B]` in radians, half a Gaussian over `reach` pixels."""
    weights = torch.exp(-0.5 * (torch.arange(reach + 1) / deviation) ** 2)
    step = 2 / images.shape[-1] * torch.stack([angles.cos(), angles.sin()], dim=1)[:, None, None]
    places, total = grid(images), torch.zeros_like(images)
    for distance, weight in enumerate((weights / weights.sum()).tolist()):
        total += weight * sample(images, places + distance * step, "border")
    return total


def grid(images: Tensor) -> Tensor:
    """Return the places of all pixels, `[1, S, S, 2]`: x and y from -1 to 1."""
    side = images.shape[-1]
    places = (2 * torch.arange(side, device=images.device, dtype=images.dtype) + 1) / side - 1
    return torch.stack(torch.meshgrid(places, places, indexing="xy"), dim=2)[None]


def sample(images: Tensor, places: Tensor, edges: str = "reflection") -> Tensor:
    """Return images `[B, C, S, S]` at places `[B or 1, S, S, 2]`, bilinearly."""
    places = places.expand(len(images), -1, -1, -1)
    return F.grid_sample(images, places, mode="bilinear", padding_mode=edges, align_corners=False)
