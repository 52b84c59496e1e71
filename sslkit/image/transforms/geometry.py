"""Geometric transforms: crops, flips, rotations, tiles and resizing."""

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
    """Crop a random box of each image `[B, C, H, W]` and resize it to `[B, C, size, size]`.

    The area, as a fraction of the image, is uniform in `scale`, and the logarithm of width/height is uniform in `ratio`; of ten
    such boxes the first that fits is used, as in torchvision, and if none fits, the last one is clamped to the image. Boxes
    are not aligned to whole pixels and are sampled bilinearly without a low-pass filter. A fraction `flipped` of the crops is
    mirrored as by `flip`, at no extra cost.
    """
    batch, _, height, width = image.shape
    area = scale[0] + (scale[1] - scale[0]) * torch.rand(batch, 10, device=image.device, dtype=image.dtype)
    log_ratio = math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * torch.rand(
        batch, 10, device=image.device, dtype=image.dtype
    )
    # As fractions of the image's sides; `ratio` is a ratio of pixels, also on images that are not square.
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
    """Crop a square of `size` pixels at a random whole pixel of each image `[B, C, H, W]`, without resizing it.

    An image with a margin of less than `padding * size` is first padded by that much on each side by reflection, as is usual
    for small images; one that is smaller than `size` is enlarged to `size` before.
    """
    if min(image.shape[-2:]) < size:
        image = F.interpolate(image, size=(size, size), mode="bilinear")
    height, width = image.shape[-2:]
    margin = round(padding * size)
    if min(height, width) < size + margin:
        image = F.pad(image, (margin,) * 4, mode="reflect")
        height, width = image.shape[-2:]
    top = torch.randint(height - size + 1, (len(image), 1), device=image.device)
    left = torch.randint(width - size + 1, (len(image), 1), device=image.device)
    return cut_tiles(image, top, left, size)[:, 0]


def cut_tiles(image: Tensor, top: Tensor, left: Tensor, side: int) -> Tensor:
    """Cut squares of `side` pixels out of each image `[B, C, H, W]` at whole pixels `[B, V]`: `[B, V, C, side, side]`."""
    offset = torch.arange(side, device=image.device)
    sample = torch.arange(len(image), device=image.device).view(-1, 1, 1, 1)
    rows, columns = (top[:, :, None] + offset)[..., None], (left[:, :, None] + offset)[:, :, None]
    return image.permute(0, 2, 3, 1)[sample, rows, columns].permute(0, 1, 4, 2, 3).contiguous()


def cut_tiles_in_cells(image: Tensor, cells: Tensor, columns: int, side: int) -> Tensor:
    """Cut a square of `side` pixels at a random position inside each cell of square images: `[B, V, C, side, side]`.

    `cells` int64 `[B, V]` are cell numbers in row-major order on a grid of `columns` × `columns`.
    """
    pitch = image.shape[-1] // columns
    offset = torch.randint(pitch - side + 1, (2, *cells.shape), device=image.device)
    return cut_tiles(image, cells // columns * pitch + offset[0], cells % columns * pitch + offset[1], side)


def resize(image: Tensor, side: int) -> Tensor:
    """Resize images or tiles `[..., C, S, S]` to `side` pixels bilinearly; return them unchanged if they have that size."""
    if image.shape[-1] == side:
        return image
    flat = image.flatten(0, -4) if image.dim() > 4 else image
    return F.interpolate(flat, size=(side, side), mode="bilinear").view(*image.shape[:-2], side, side)


def random_rotation(image: Tensor, degrees: float) -> Tensor:
    """Rotate each square image `[B, C, S, S]` by an angle uniform in ±`degrees`; corners are filled with border pixels."""
    angle = math.radians(degrees) * (2 * torch.rand(len(image), device=image.device, dtype=image.dtype) - 1)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    theta = torch.stack([cosine, -sine, zero, sine, cosine, zero], dim=1).view(-1, 2, 3)
    return _sample_bilinear(image, theta, image.shape[-1])


def random_downscale(image: Tensor, size: int) -> Tensor:
    """Downscale images `[B, C, H, W]` to `size`, a random third each by an area, a bilinear and a bicubic filter.

    A resampling filter leaves traces in the pixels, by which a task that compares images of two sizes could tell them apart
    (Noroozi et al., 2017, section 3.3).
    """
    order = torch.randperm(len(image), device=image.device)
    target = (size, size)
    thirds = [
        F.interpolate(third, size=target, mode="area")
        if number == 0
        else F.interpolate(third, size=target, mode="bilinear" if number == 1 else "bicubic", antialias=True)
        for number, third in enumerate(image[order].tensor_split(3))
        if len(third)
    ]
    return torch.cat(thirds)[order.argsort()].clamp(0, 1)


def crop(
    image: Tensor, top: Tensor, left: Tensor, down: Tensor, across: Tensor, size: int, mirrored: Tensor | None = None
) -> Tensor:
    """Crop one box of each image `[B, C, H, W]` and resize it to `size` pixels.

    `top`, `left`, `down` (height) and `across` (width) are `[B]`, as fractions of the image's sides; crops that are `mirrored`
    (bool `[B]`) are flipped left to right.
    """
    zero = torch.zeros_like(top)
    signed_width = across if mirrored is None else torch.where(mirrored, -across, across)
    # affine_grid works in [-1, 1]: the scale is the box's fraction of the side, the translation its center.
    theta = torch.stack([signed_width, zero, 2 * left + across - 1, zero, down, 2 * top + down - 1], dim=1).view(-1, 2, 3)
    return _sample_bilinear(image, theta, size)


def _sample_bilinear(image: Tensor, theta: Tensor, size: int) -> Tensor:
    """Sample images at `size` pixels through affine maps `theta` `[B, 2, 3]`; outside the image, border pixels are repeated."""
    grid = F.affine_grid(theta, [len(image), image.shape[1], size, size], align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)


def flip(image: Tensor, probability: float = 0.5) -> Tensor:
    """Mirror each image `[B, C, H, W]` left to right with the given probability."""
    selected = torch.rand(len(image), device=image.device) < probability
    return torch.where(selected[:, None, None, None], image.flip(-1), image)


def right_angle_rotations(image: Tensor) -> Tensor:
    """Rotate square images `[B, C, S, S]` by 0, 90, 180 and 270 degrees: `[B, 4, C, S, S]`, exact, without interpolation."""
    return torch.stack([image.rot90(quarter_turns, (-2, -1)) for quarter_turns in range(4)], dim=1)


def center_view(image: Tensor, size: int) -> Tensor:
    """Return the evaluation view of canvases `[B, C, S, S]`: the center crop of 7/8 of the side, resized to `size`.

    A canvas of exactly `size` pixels is returned unchanged: small images have no margin to lose.
    """
    canvas = image.shape[-1]
    if canvas == size:
        return image
    keep = min(canvas, max(size, round(canvas * 7 / 8)))
    start = (canvas - keep) // 2
    center = image[..., start : start + keep, start : start + keep]
    if keep == size:
        return center
    return F.interpolate(center, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
