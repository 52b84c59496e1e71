"""Transforms of clips `[B, T, C, H, W]`: one crop for all frames, tubelets, and masks over them."""

from dataclasses import replace

import torch
from torch import Tensor

from sslkit.image.transforms import crop, random_box, random_mask, random_resized_crop


def crop_clip(clip: Tensor, size: int, scale: float, aspect: Tensor, flipped: float = 0.0) -> Tensor:
    """Return a random crop of at least `scale` of the area, the same one for all frames, `[B, T, C, size, size]`."""
    frames = clip.flatten(1, 2)  # as channels of one image
    cropped: Tensor = random_resized_crop(frames, size, (scale, 1.0), flipped=flipped, aspect=aspect)
    return cropped.view(*clip.shape[:3], size, size)


def crop_frames(clip: Tensor, size: int, scale: float, aspect: Tensor, shift: float) -> Tensor:
    """Return a random crop, `[B, T, C, size, size]`, that lies elsewhere in each frame, by up to `shift` of its side."""
    count, frames = clip.shape[:2]
    box = random_box(clip[:, 0], (scale, 1.0), aspect=aspect)
    down, across, top, left = (side.repeat_interleave(frames) for side in (box.down, box.across, box.top, box.left))
    moved = shift * (2 * torch.rand(2, count * frames, device=clip.device) - 1)
    top, left = top + moved[0] * down, left + moved[1] * across
    box = replace(
        box, top=top.clamp(min=0).minimum(1 - down), left=left.clamp(min=0).minimum(1 - across), down=down, across=across
    )
    return crop(clip.flatten(0, 1), box, size).view(*clip.shape[:3], size, size)


def cut_tubelets(clip: Tensor, frames: int, side: int) -> Tensor:
    """Return tubelets of so many frames and pixels a side, `[B, N, frames * side * side * C]`.

    Those of a moment follow each other, row by row.
    """
    batch, time, channels, height, width = clip.shape
    cut = clip.reshape(batch, time // frames, frames, channels, height // side, side, width // side, side)
    return cut.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4).flatten(1, 3)


def join_tubelets(tubelets: Tensor, shape: torch.Size, frames: int, side: int) -> Tensor:
    """Return clips of a shape `[B, T, C, H, W]` made of their tubelets: the inverse of `cut_tubelets`."""
    batch, time, channels, height, width = shape
    cut = tubelets.view(batch, time // frames, height // side, width // side, frames, side, side, channels)
    return cut.permute(0, 1, 4, 7, 2, 5, 3, 6).reshape(shape)


def tubelet_mask(batch: int, grid: tuple[int, int, int], kind: str, ratio: float, device: torch.device) -> tuple[Tensor, int]:
    """Return a mask over the tubelets of a grid (time, rows, columns), bool `[B, N]`, and how many it hides of each clip.

    `tube` hides the same places at all times, `frame` all places of some times, `random` any. At least one is hidden, and not
    all (Tong et al., 2022, section 3.3).
    """
    time, area = grid[0], grid[1] * grid[2]
    units = {"tube": area, "frame": time, "random": time * area}[kind]
    hidden = min(max(1, round(ratio * units)), units - 1)
    mask = random_mask(batch, units, hidden, device)
    if kind == "tube":
        mask = mask[:, None].expand(-1, time, -1).flatten(1)
    if kind == "frame":
        mask = mask[:, :, None].expand(-1, -1, area).flatten(1)
    return mask, hidden * (time * area // units)
