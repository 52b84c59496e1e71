"""Which patches are hidden: bool `[B, N]`, patches row by row, exactly as many hidden in each sample as asked for."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.contract.errors import SslkitError


def random_mask(batch: int, patches: int, hidden: int, device: torch.device) -> Tensor:
    """Hide `hidden` of `patches`, any as likely as any other, `[B, N]`."""
    return _first(torch.rand(batch, patches, device=device), hidden)


def block_mask(batch: int, grid: tuple[int, int], hidden: int, device: torch.device, blocks: int = 16) -> Tensor:
    """Hide rectangles one after the other until `hidden` patches of a grid are covered, `[B, N]`.

    Each covers 8% to 40% of the grid with an aspect ratio between 0.3 and 1/0.3 (BEiT; Bao et al., 2022, algorithm 1).
    Of the last one a random part is hidden, so that the count is exact.
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
    # The number of the first rectangle over each patch; one that none covers comes last.
    first = torch.where(covered.any(dim=1), covered.to(torch.uint8).argmax(dim=1), blocks).flatten(1)
    return _first(first + torch.rand(batch, height * width, device=device), hidden)


def grid_mask(batch: int, grid: tuple[int, int], device: torch.device) -> Tensor:
    """Keep one patch of every two by two and hide the others, `[B, N]`."""
    row = torch.arange(grid[0], device=device)[:, None] % 2
    column = torch.arange(grid[1], device=device) % 2
    return ((row == 1) | (column == 1)).flatten().expand(batch, -1)


def hole_mask(batch: int, size: int, kind: str, share: float, device: torch.device) -> Tensor:
    """Return what is hidden of square images, bool `[B, size, size]`: the given share, or a little more to end whole rows.

    `center`: a square in the middle. `block`: the union of four boxes anywhere. `region`: a random silhouette in one
    piece, a circle about a random place whose radius varies with the angle; the paper takes outlines of objects from a
    labeled data set (Pathak et al., 2016, section 3.3).
    """
    along = (torch.arange(size, device=device) + 0.5) / size - 0.5
    row, column = along[:, None], along[None, :]
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
        height, phase = torch.rand(2, batch, 4, 1, 1, device=device)
        radius = torch.exp((height / waves.sqrt() * torch.cos(waves * angle[:, None] + 2 * math.pi * phase)).sum(dim=1))
        distance = ((row - top) ** 2 + (column - left) ** 2).sqrt() / radius
    nearest = distance.flatten(1).sort(dim=1).values[:, max(1, round(share * size * size)) - 1]
    return distance <= nearest[:, None, None]


def split_patches(mask: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    """Return the places of visible `[B, N - hidden]` and hidden `[B, hidden]` patches of a mask, each in order."""
    places = mask.to(torch.uint8).argsort(dim=1, stable=True)
    return places[:, : mask.shape[1] - hidden], places[:, mask.shape[1] - hidden :]


def patches(image: Tensor, side: int) -> Tensor:
    """Return the patches of `[B, C, H, W]` row by row, `[B, N, side * side * C]`."""
    batch, channels, height, width = image.shape
    cut = image.view(batch, channels, height // side, side, width // side, side)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def take_patches(rows: Tensor, places: Tensor) -> Tensor:
    """Return `[B, K, D]` of `[B, N, D]`: what stands at places `[B, K]`."""
    return rows.gather(1, places[:, :, None].expand(-1, -1, rows.shape[2]))


def hidden_count(ratio: float, grid: tuple[int, int]) -> int:
    """Return how many patches of a grid a ratio hides, at least one and not all; raises SslkitError for a single patch."""
    count = grid[0] * grid[1]
    if count < 2:
        raise SslkitError("the image is one patch of the encoder", "there is nothing to hide", flag="size")
    return min(max(1, round(ratio * count)), count - 1)


def normalize_patches(patch: Tensor) -> Tensor:
    """Return patches `[B, N, D]`, each minus its mean, over its standard deviation (He et al., 2022, section 4.1)."""
    return (patch - patch.mean(dim=2, keepdim=True)) / (patch.var(dim=2, keepdim=True) + 1e-6).sqrt()


def as_pixels(normalized: Tensor, patch: Tensor) -> Tensor:
    """Return what is told of patches `[B, N, D]` with the mean and the deviation that these have."""
    return normalized * (patch.var(dim=2, keepdim=True) + 1e-6).sqrt() + patch.mean(dim=2, keepdim=True)


def with_hidden(image: Tensor, places: Tensor, grid: tuple[int, int]) -> Tensor:
    """Return images `[B, C, H, W]` with the patches at places `[B, K]` in gray, as people are shown what is hidden."""
    hidden = torch.zeros(len(image), grid[0] * grid[1], device=image.device).scatter(1, places, 1.0)
    return torch.where(F.interpolate(hidden.view(-1, 1, *grid), size=image.shape[-2:]) > 0, 0.5, image)


def with_patches(image: Tensor, places: Tensor, values: Tensor, side: int) -> Tensor:
    """Return images `[B, C, H, W]` with patches of `side` pixels at places `[B, K]` replaced by values `[B, K, D]`."""
    batch, channels, height, width = image.shape
    every = patches(image, side).scatter(1, places[:, :, None].expand_as(values), values.to(image.dtype))
    cut = every.view(batch, height // side, width // side, side, side, channels)
    return cut.permute(0, 5, 1, 3, 2, 4).reshape(image.shape)


def _first(order: Tensor, hidden: int) -> Tensor:
    """Hide the `hidden` places of each row that come first."""
    mask = torch.zeros(order.shape, dtype=torch.bool, device=order.device)
    return mask.scatter(1, order.argsort(dim=1)[:, :hidden], True)
