"""Where the pixels come from: crops, flips and right-angle turns."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def random_resized_crop(
    image: Tensor,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flipped: float = 0.0,
) -> Tensor:
    """Cut a random part out of each image `[B, C, H, W]` and resize it to `[B, C, size, size]`.

    The share of the area is uniform in `scale`, the logarithm of width/height uniform in `ratio`; of ten such boxes the
    first that fits is taken, as in torchvision, and if none does the last is narrowed to the image. The box lies
    anywhere, not on whole pixels only, and is sampled bilinearly without a low-pass filter. A share `flipped` is mirrored, as
    `flip` does afterwards, and at no cost.
    """
    batch, _, height, width = image.shape
    area = scale[0] + (scale[1] - scale[0]) * torch.rand(batch, 10, device=image.device, dtype=image.dtype)
    log_ratio = math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * torch.rand(
        batch, 10, device=image.device, dtype=image.dtype
    )
    # In shares of the image's sides; on an image that is not square the ratio is one of pixels.
    across = (area * log_ratio.exp() * (height / width)).sqrt()
    down = (area / log_ratio.exp() * (width / height)).sqrt()
    fits = (across <= 1) & (down <= 1)
    fits[:, -1] = True
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    across, down = (side.gather(1, first)[:, 0].clamp(max=1) for side in (across, down))
    top, left = torch.rand(2, batch, device=image.device, dtype=image.dtype)
    top, left = top * (1 - down), left * (1 - across)
    mirrored = torch.rand(batch, device=image.device) < flipped if flipped else None
    return crop(image, top, left, down, across, size, mirrored)


def random_crop(image: Tensor, size: int, padding: float = 0.125) -> Tensor:
    """Cut a square of `size` pixels, not resized, at a random whole pixel out of each image `[B, C, H, W]`.

    An image with less than `padding` of `size` to spare is first widened by that on each side, mirrored, as is usual
    for small images; one that is smaller than `size` is enlarged to it before.
    """
    if min(image.shape[-2:]) < size:
        image = F.interpolate(image, size=(size, size), mode="bilinear")
    height, width = image.shape[-2:]
    spare = round(padding * size)
    if min(height, width) < size + spare:
        image = F.pad(image, (spare,) * 4, mode="reflect")
        height, width = image.shape[-2:]
    top = torch.randint(height - size + 1, (len(image), 1), device=image.device)
    left = torch.randint(width - size + 1, (len(image), 1), device=image.device)
    return tiles(image, top, left, size)[:, 0]


def tiles(image: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Cut squares of `side` pixels out of each image `[B, C, H, W]` at whole pixels `[B, V]`: `[B, V, C, side, side]`."""
    along = torch.arange(side, device=image.device)
    sample = torch.arange(len(image), device=image.device).view(-1, 1, 1, 1)
    rows, columns = (top[:, :, None] + along)[..., None], (left[:, :, None] + along)[:, :, None]
    return image.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 1, 4, 2, 3).contiguous()


def tiles_in_cells(image: Tensor, place: Tensor, across: int, side: int) -> Tensor:
    """Cut a square of `side` pixels at a random place out of cells of square images: `[B, V, C, side, side]`.

    `place` int64 `[B, V]` numbers the cells, `across` in a row, row by row.
    """
    cell = image.shape[-1] // across
    moved = torch.randint(cell - side + 1, (2, *place.shape), device=image.device)
    return tiles(image, place // across * cell + moved[0], place % across * cell + moved[1], side)


def resized(image: Tensor, side: int) -> Tensor:
    """Return images or tiles `[..., C, S, S]` at `side` pixels, bilinearly; as they are if they have that size."""
    if image.shape[-1] == side:
        return image
    flat = image.flatten(0, -4) if image.dim() > 4 else image
    return F.interpolate(flat, size=(side, side), mode="bilinear").view(*image.shape[:-2], side, side)


def random_turn(image: Tensor, degrees: float) -> Tensor:
    """Turn each square image `[B, C, S, S]` by an angle uniform in ±`degrees`; corners repeat the border's pixels."""
    angle = math.radians(degrees) * (2 * torch.rand(len(image), device=image.device, dtype=image.dtype) - 1)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    return _sampled(image, theta, image.shape[-1])


def random_shrink(image: Tensor, size: int) -> Tensor:
    """Shrink images `[B, C, H, W]` to `size` by a filter drawn for each: area, bilinear or bicubic, a third each.

    Which filter made an image small shows in its pixels, and a task that compares images of two sizes could tell them
    apart by it (Noroozi et al., 2017, section 3.3).
    """
    order = torch.randperm(len(image), device=image.device)
    shapes = (size, size)
    parts = [
        F.interpolate(part, size=shapes, mode="area")
        if number == 0
        else F.interpolate(part, size=shapes, mode="bilinear" if number == 1 else "bicubic", antialias=True)
        for number, part in enumerate(image[order].tensor_split(3))
        if len(part)
    ]
    return torch.cat(parts)[order.argsort()].clamp(0, 1)


def crop(
    image: Tensor, top: Tensor, left: Tensor, down: Tensor, across: Tensor, size: int, mirrored: Tensor | None = None
) -> Tensor:
    """Cut boxes `[B]` each, in shares of the image's sides, out of `[B, C, H, W]` and resize them to `size`.

    Those that are `mirrored` are read from right to left.
    """
    zero = torch.zeros_like(top)
    rightwards = across if mirrored is None else torch.where(mirrored, -across, across)
    # affine_grid works in [-1, 1]: scale is the box's share, translation its center.
    theta = torch.stack([rightwards, zero, 2 * left + across - 1, zero, down, 2 * top + down - 1], dim=1).view(-1, 2, 3)
    return _sampled(image, theta, size)


def _sampled(image: Tensor, theta: Tensor, size: int) -> Tensor:
    """Return images at `size` pixels, looked at through maps of places `theta` `[B, 2, 3]`; beyond the border, its pixels."""
    grid = F.affine_grid(theta, [len(image), image.shape[1], size, size], align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def flip(image: Tensor, probability: float = 0.5) -> Tensor:
    """Mirror each image `[B, C, H, W]` left to right with the given probability."""
    chosen = torch.rand(len(image), device=image.device) < probability
    return torch.where(chosen[:, None, None, None], image.flip(-1), image)


def right_angles(image: Tensor) -> Tensor:
    """Turn square images `[B, C, S, S]` by 0, 90, 180 and 270 degrees: `[B, 4, C, S, S]`, exactly, no interpolation."""
    return torch.stack([image.rot90(turns, (-2, -1)) for turns in range(4)], dim=1)


def center_view(image: Tensor, size: int) -> Tensor:
    """Return what evaluation sees of canvases `[B, C, S, S]`: the middle 7/8, resized to `size`.

    A canvas of exactly `size` is taken whole: small images have no margin to spare.
    """
    canvas = image.shape[-1]
    if canvas == size:
        return image
    keep = min(canvas, max(size, round(canvas * 7 / 8)))
    start = (canvas - keep) // 2
    middle = image[..., start : start + keep, start : start + keep]
    if keep == size:
        return middle
    return F.interpolate(middle, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
