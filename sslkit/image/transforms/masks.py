"""Masks over the patches of an image, bool `[B, N]` in row-major order (True: masked), and functions on patches.

Every sample has exactly the requested number of masked patches, so that shapes never depend on content.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.pictures import side_by_side


def random_mask(batch: int, patches: int, num_masked: int, device: torch.device) -> Tensor:
    """Mask `num_masked` of `patches`, chosen uniformly, `[B, N]`."""
    return _mask_smallest(torch.rand(batch, patches, device=device), num_masked)


def block_mask(batch: int, grid: tuple[int, int], num_masked: int, device: torch.device, blocks: int = 16) -> Tensor:
    """Mask random rectangles until `num_masked` patches of a grid (rows, columns) are covered, `[B, N]`.

    Each covers 8% to 40% of the grid with an aspect ratio between 0.3 and 1/0.3 (BEiT; Bao et al., 2022, algorithm 1).
    Only a random part of the last rectangle is masked, so that the count is exact.
    """
    height, width = grid
    area = (0.08 + 0.32 * torch.rand(batch, blocks, device=device)) * height * width
    ratio = torch.exp((2 * torch.rand(batch, blocks, device=device) - 1) * math.log(1 / 0.3))
    down = (area * ratio).sqrt().clamp(1, height)
    across = (area / ratio).sqrt().clamp(1, width)
    top = torch.rand(batch, blocks, device=device) * (height - down)
    left = torch.rand(batch, blocks, device=device) * (width - across)
    row = torch.arange(height, device=device).view(1, 1, -1, 1) + 0.5
    column = torch.arange(width, device=device).view(1, 1, 1, -1) + 0.5
    top, left, down, across = (side[:, :, None, None] for side in (top, left, down, across))
    covered = (row > top) & (row < top + down) & (column > left) & (column < left + across)  # [B, blocks, h, w]
    # The index of the first rectangle over each patch; patches that no rectangle covers come last.
    first = torch.where(covered.any(dim=1), covered.to(torch.uint8).argmax(dim=1), blocks).flatten(1)
    return _mask_smallest(first + torch.rand(batch, height * width, device=device), num_masked)


def grid_mask(batch: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Keep one patch of every 2 × 2 and mask the other three, `[B, N]`."""
    row = torch.arange(grid[0], device=device)[:, None] % 2
    column = torch.arange(grid[1], device=device) % 2
    return ((row == 1) | (column == 1)).flatten().expand(batch, -1)


def hole_mask(batch: int, size: int, kind: str, share: float, device: torch.device) -> Tensor:
    """Return a mask of pixels, bool `[B, size, size]`, that covers `share` of each image, or slightly more to complete rows.

    `center`: a square in the middle. `block`: the union of four boxes at random positions. `region`: a random connected
    silhouette, a circle around a random point whose radius varies with the angle; the paper takes outlines of objects from
    a labeled data set (Pathak et al., 2016, section 3.3).
    """
    coordinate = (torch.arange(size, device=device) + 0.5) / size - 0.5
    row, column = coordinate[:, None], coordinate[None, :]
    if kind == "center":
        distance = torch.maximum(row.abs(), column.abs()).expand(batch, size, size)
    elif kind == "block":
        top, left = (torch.rand(2, batch, 4, 1, 1, device=device) - 0.5) * 0.8
        ratio = torch.exp(0.7 * (2 * torch.rand(batch, 4, 1, 1, device=device) - 1))
        distance = torch.maximum((row - top).abs() * ratio, (column - left).abs() / ratio).amin(dim=1)
    else:
        top, left = (torch.rand(2, batch, 1, 1, device=device) - 0.5) * 0.9
        angle = torch.atan2(row - top, column - left)
        waves = torch.arange(2, 6, device=device).view(1, -1, 1, 1)
        amplitude, phase = torch.rand(2, batch, 4, 1, 1, device=device)
        radius = torch.exp((amplitude / waves.sqrt() * torch.cos(waves * angle[:, None] + 2 * math.pi * phase)).sum(dim=1))
        distance = ((row - top) ** 2 + (column - left) ** 2).sqrt() / radius
    threshold = distance.flatten(1).sort(dim=1).values[:, max(1, round(share * size * size)) - 1]
    return distance <= threshold[:, None, None]


def split_patches(mask: Tensor, num_masked: int) -> tuple[Tensor, Tensor]:
    """Return the indices of the visible `[B, N - num_masked]` and of the masked patches `[B, num_masked]`, each ascending."""
    indices = mask.to(torch.uint8).argsort(dim=1, stable=True)
    num_visible = mask.shape[1] - num_masked
    return indices[:, :num_visible], indices[:, num_visible:]


def patchify(image: Tensor, side: int) -> Tensor:
    """Return the patches of images `[B, C, H, W]` in row-major order, `[B, N, side * side * C]`."""
    batch, channels, height, width = image.shape
    cut = image.view(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def take_patches(patches: Tensor, indices: Tensor) -> Tensor:
    """Return `[B, K, D]`, the patches (or tokens) of `[B, N, D]` at indices `[B, K]`."""
    return patches.gather(1, indices[:, :, None].expand(-1, -1, patches.shape[2]))


def masked_patch_count(ratio: float, grid: tuple[int, int]) -> int:
    """Return the number of patches of a grid that a mask ratio masks, at least one and not all.

    Raises:
        SslkitError: the grid is a single patch.
    """
    count = grid[0] * grid[1]
    if count < 2:
        raise SslkitError("the image is a single patch of the encoder", "masking needs at least two patches", flag="size")
    return min(max(1, round(ratio * count)), count - 1)


def normalize_patches(patch: Tensor) -> Tensor:
    """Normalize each patch of `[B, N, D]` by its own mean and standard deviation (He et al., 2022, section 4.1)."""
    return (patch - patch.mean(dim=2, keepdim=True)) / (patch.var(dim=2, keepdim=True) + 1e-6).sqrt()


def denormalize_patches(normalized: Tensor, patch: Tensor) -> Tensor:
    """Return normalized patches `[B, N, D]` with the means and deviations of `patch`: the inverse of `normalize_patches`."""
    return normalized * (patch.var(dim=2, keepdim=True) + 1e-6).sqrt() + patch.mean(dim=2, keepdim=True)


def gray_out_patches(image: Tensor, indices: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return images `[B, C, H, W]` with the patches at indices `[B, K]` painted gray, to show a mask in previews."""
    mask = torch.zeros(len(image), grid[0] * grid[1], device=image.device).scatter(1, indices, 1.0)
    return torch.where(F.interpolate(mask.view(-1, 1, *grid), size=image.shape[-2:]) > 0, 0.5, image)


def replace_patches(image: Tensor, indices: Tensor, values: Tensor, side: int) -> Tensor:
    """Return images `[B, C, H, W]` with the patches of `side` pixels at indices `[B, K]` replaced by values `[B, K, D]`."""
    batch, channels, height, width = image.shape
    patches = patchify(image, side).scatter(1, indices[:, :, None].expand_as(values), values.to(image.dtype))
    cut = patches.view(batch, height // side, width // side, side, side, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(image.shape)


def preview_masked(image: Tensor, indices: Tensor, grid: tuple[int, int], predicted: Tensor | None = None) -> Tensor:
    """Return previews of a masked task: images, masked images, and, given values `[B, K, D]`, images with those patches."""
    columns = [image, gray_out_patches(image, indices, grid)]
    if predicted is not None:
        columns.append(replace_patches(image, indices, predicted, image.shape[-1] // grid[1]).clamp(0, 1))
    return side_by_side(*columns)


def _mask_smallest(order: Tensor, num_masked: int) -> Tensor:
    """Mask the `num_masked` smallest values of each row."""
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return mask.scatter(1, order.argsort(dim=1)[:, :num_masked], True)
