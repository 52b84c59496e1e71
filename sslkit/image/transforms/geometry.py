"""Geometric transforms: crops, flips, rotations, tiles and resizing."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.nn.fusion import fusible


@dataclass(frozen=True)
class CropBox:
    """A box in each image, as fractions of its sides: tensors `[B]`."""

    top: Tensor
    left: Tensor
    down: Tensor  # height
    across: Tensor  # width
    mirrored: Tensor | None = None  # bool: crops that are flipped left to right


def random_resized_crop(
    canvas: Tensor,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flipped: float = 0.0,
    aspect: Tensor | None = None,
) -> Tensor:
    """Crop a random box of each image and resize it to `[B, C, size, size]`, as torchvision's RandomResizedCrop does.

    `canvas` `[B, C, H, W]` holds whole images, stretched to squares; `aspect` `[B]` is width / height before that, by default
    W / H. For the boxes see `random_box`. A fraction `flipped` of the crops is mirrored as by `flip`, at no extra cost.
    """
    return crop(canvas, random_box(canvas, scale, ratio, flipped, aspect), size)


def random_box(
    canvas: Tensor,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
    flipped: float = 0.0,
    aspect: Tensor | None = None,
) -> CropBox:
    """Return a random box in each canvas `[B, C, H, W]` for `crop`, `crop_mask` and `crop_boxes`.

    The area, as a fraction of the whole image, is uniform in `scale`, and the logarithm of width / height in `ratio`; of ten
    such boxes the first that fits is used, and if none fits, the largest one in the middle. They are not aligned to whole
    pixels. Of an image whose `aspect` is beyond 2:1, the canvas holds a part of 2:1.
    """
    batch, _, height, width = canvas.shape
    windowed = aspect is not None
    if aspect is None:
        aspect = torch.full((batch,), width / height, device=canvas.device, dtype=canvas.dtype)
    shape = torch.rand(2, batch, 10, device=canvas.device, dtype=canvas.dtype)
    place = torch.rand(2, batch, device=canvas.device, dtype=canvas.dtype)
    mirrored = torch.rand(batch, device=canvas.device) < flipped if flipped else None
    top, left, box_height, box_width = _fit_boxes(shape, place, aspect, scale=scale, ratio=ratio, windowed=windowed)
    return CropBox(top, left, box_height, box_width, mirrored)


@fusible
def _fit_boxes(
    shape: Tensor, place: Tensor, aspect: Tensor, *, scale: tuple[float, float], ratio: tuple[float, float], windowed: bool
) -> Tensor:
    """Return top, left, height and width of boxes, `[4, B]`, from uniform draws `shape` `[2, B, 10]` and `place` `[2, B]`."""
    # In units of the image's height: the image is `aspect` wide, its part on the canvas `across` × `down`.
    across, down = (aspect.clamp(max=2), (2 * aspect).clamp(max=1)) if windowed else (aspect, torch.ones_like(aspect))
    area, log_ratio = shape
    area = (scale[0] + (scale[1] - scale[0]) * area) * aspect[:, None]
    ratios = (math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * log_ratio).exp()
    box_widths, box_heights = (area * ratios).sqrt(), (area / ratios).sqrt()
    fits = (box_widths <= across[:, None]) & (box_heights <= down[:, None])
    first = fits.to(torch.uint8).argmax(dim=1, keepdim=True)
    box_width, box_height = box_widths.gather(1, first)[:, 0], box_heights.gather(1, first)[:, 0]
    none = ~fits.any(dim=1)
    box_width = torch.where(none, torch.minimum(across, down * ratio[1]), box_width) / across
    box_height = torch.where(none, torch.minimum(down, across / ratio[0]), box_height) / down
    top, left = torch.where(none, 0.5, place)
    return torch.stack([top * (1 - box_height), left * (1 - box_width), box_height, box_width])


def random_crop(canvas: Tensor, size: int, padding: float = 0.125, aspect: Tensor | None = None) -> Tensor:
    """Crop a square of `size` pixels at a random whole pixel of each canvas `[B, C, S, S]`, without shrinking it.

    A canvas with a margin of less than `padding * size` is first padded by that much on each side by reflection, as is usual
    for small images; one that is smaller than `size` is enlarged to `size` before. `aspect` `[B]` is width / height of the
    images that canvases hold whole: what is cut out is a square of those, enlarged along the side that was shrunk.
    """
    if canvas.shape[-1] < size:
        canvas = F.interpolate(canvas, size=(size, size), mode="bilinear")
    margin = round(padding * size)
    if canvas.shape[-1] < size + margin:
        canvas = F.pad(canvas, (margin,) * 4, mode="reflect")
    side = canvas.shape[-1]
    window = torch.ones(len(canvas), device=canvas.device) if aspect is None else aspect.clamp(0.5, 2)
    across, down = size / window.clamp(min=1), size * window.clamp(max=1)
    left, top = (((side - box + 1) * torch.rand(len(canvas), device=canvas.device)).floor() for box in (across, down))
    return crop(canvas, CropBox(top / side, left / side, down / side, across / side), size, shrinks=False)


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


def random_rotation(image: Tensor, degrees: float, aspect: Tensor | None = None) -> Tensor:
    """Rotate each square image `[B, C, S, S]` by an angle uniform in ±`degrees`; corners are filled with border pixels.

    `aspect` `[B]` is width / height of the images that canvases hold whole.
    """
    angle = math.radians(degrees) * (2 * torch.rand(len(image), device=image.device, dtype=image.dtype) - 1)
    cosine, sine, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    window = torch.ones_like(angle) if aspect is None else aspect.clamp(0.5, 2)
    theta = torch.stack([cosine, -sine / window, zero, sine * window, cosine, zero], dim=1).view(-1, 2, 3)
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


def crop(image: Tensor, box: CropBox, size: int, shrinks: bool | None = None) -> Tensor:
    """Crop one box of each image `[B, C, H, W]` and resize it bilinearly to `size` pixels.

    Where a box can be larger than the crop (`shrinks`; by default, where the image is), each pixel is the mean of four, as far
    from its center as it takes not to leave any out, up to boxes of twice the size.
    """
    height, width = image.shape[-2:]
    if shrinks is None:
        shrinks = max(height, width) > size
    offsets = None
    if shrinks:
        # A quarter of the distance of two pixels of the crop, as a fraction of the image. What is enlarged would be blurred by
        # a fixed distance: none of it up to the size itself, all of it from half on.
        parts = ((box.across, width), (box.down, height))
        offsets = torch.stack([part / size * (part * side / size - 1).clamp(0, 1) / 4 for part, side in parts], dim=1)
    if image.device.type == "cpu":
        return _crop_by_rows(image, box, size, offsets)
    return _crop_by_pixels(image, _theta(box), size, offsets)


@fusible
def _crop_by_pixels(image: Tensor, theta: Tensor, size: int, offsets: Tensor | None) -> Tensor:
    """Sample images through affine maps `[B, 2, 3]`, each pixel at one place or at four, ± `offsets` `[B, 2]` of a side."""
    grid = F.affine_grid(theta, [len(image), image.shape[1], size, size], align_corners=False)
    if offsets is None:
        return F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    x, y = (2 * offsets[:, None, None]).unbind(-1)  # a side is 2 long in affine maps
    total = torch.zeros((), device=image.device, dtype=image.dtype)
    for shift in ((-x, -y), (-x, y), (x, -y), (x, y)):
        taps = grid + torch.stack(shift, dim=-1)
        total = total + F.grid_sample(image, taps, mode="bilinear", padding_mode="border", align_corners=False)
    return total / 4


def _crop_by_rows(image: Tensor, box: CropBox, size: int, offsets: Tensor | None) -> Tensor:
    """Crop as `crop` does, one direction after the other: a row of the crop is a weighted sum of two or four whole rows.

    On a CPU that takes a fifth of the time of four samples at every pixel, which are far apart in memory.
    """
    across, down = (None, None) if offsets is None else offsets.unbind(1)
    narrow = _weighted_rows(image, box.top, box.down, size, down).transpose(2, 3).contiguous()
    left, width = box.left, box.across
    if box.mirrored is not None:
        left, width = torch.where(box.mirrored, left + width, left), torch.where(box.mirrored, -width, width)
    return _weighted_rows(narrow, left, width, size, across).transpose(2, 3).contiguous()


def _weighted_rows(image: Tensor, start: Tensor, extent: Tensor, size: int, offset: Tensor | None) -> Tensor:
    """Return `size` rows, evenly spaced from `start` over `extent`, of images `[B, C, H, W]`, interpolated linearly.

    `start`, `extent` and `offset` `[B]` are fractions of the height; each row is the mean of two at ± `offset`.
    """
    batch, channels, height, width = image.shape
    center = (torch.arange(size, device=image.device, dtype=image.dtype) + 0.5) / size
    position = (start[:, None] + extent[:, None] * center)[..., None]  # [B, size, taps]
    if offset is not None:
        position = position + torch.stack([-offset, offset], dim=1)[:, None]
    position = (position * height - 0.5).clamp(0, height - 1)
    lower = position.floor()
    upper_weight = position - lower
    weights = torch.cat([1 - upper_weight, upper_weight], dim=2) / position.shape[2]
    rows = torch.cat([lower, (lower + 1).clamp(max=height - 1)], dim=2).long()
    planes = torch.arange(batch * channels, device=image.device).view(batch, channels, 1, 1) * height
    indices, weights = planes + rows[:, None], weights[:, None].expand(batch, channels, *weights.shape[1:])
    table = image.reshape(-1, width)
    summed = F.embedding_bag(indices.flatten(0, 2), table, mode="sum", per_sample_weights=weights.flatten(0, 2))
    return summed.view(batch, channels, size, width)


def crop_mask(mask: Tensor, box: CropBox, size: int) -> Tensor:
    """Crop one box of each mask `[B, H, W]` to `[B, size, size]`: each pixel has the class of the nearest one."""
    grid = F.affine_grid(_theta(box), [len(mask), 1, size, size], align_corners=False)
    cropped = F.grid_sample(mask[:, None].to(grid.dtype), grid, mode="nearest", padding_mode="border", align_corners=False)
    return cropped[:, 0].round().to(mask.dtype)


def crop_boxes(corners: Tensor, labels: Tensor, box: CropBox) -> tuple[Tensor, Tensor]:
    """Return boxes `[B, K, 4]` (left, top, right, bottom, as fractions) as fractions of a crop, cut off at its border.

    Labels `[B, K]` of boxes outside the crop become -1.
    """
    start = torch.stack([box.left, box.top] * 2, dim=1)[:, None]
    extent = torch.stack([box.across, box.down] * 2, dim=1)[:, None]
    inside = ((corners - start) / extent).clamp(0, 1)
    if box.mirrored is not None:
        flipped = torch.stack([1 - inside[..., 2], inside[..., 1], 1 - inside[..., 0], inside[..., 3]], dim=2)
        inside = torch.where(box.mirrored[:, None, None], flipped, inside)
    empty = (inside[..., 2:] - inside[..., :2]).amin(dim=2) <= 0
    return inside, labels.masked_fill(empty, -1)


def _theta(box: CropBox) -> Tensor:
    """Return the affine maps `[B, 2, 3]` of boxes."""
    zero = torch.zeros_like(box.top)
    signed_width = box.across if box.mirrored is None else torch.where(box.mirrored, -box.across, box.across)
    # affine_grid works in [-1, 1]: the scale is the box's fraction of the side, the translation its center.
    rows = [signed_width, zero, 2 * box.left + box.across - 1, zero, box.down, 2 * box.top + box.down - 1]
    return torch.stack(rows, dim=1).view(-1, 2, 3)


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


def middle_side(side: int, size: int) -> int:
    """Return the side of the middle that a view of `size` pixels has of a square of `side` pixels."""
    return min(side, max(size, round(side * 7 / 8)))


def center_view(canvas: Tensor, size: int, aspect: Tensor | None = None) -> Tensor:
    """Return the middle of canvases `[B, C, S, S]` at `size` pixels: a square of 7/8 of the image's short side.

    `aspect` `[B]` is width / height of the images that canvases hold whole, as in `random_resized_crop`. A canvas of exactly
    `size` pixels is kept to its border, because small images have no margin to lose.
    """
    side = canvas.shape[-1]
    keep = middle_side(side, size)
    if aspect is not None:
        window = aspect.clamp(0.5, 2)
        across, down = keep / side / window.clamp(min=1), keep / side * window.clamp(max=1)
        return crop(canvas, CropBox((1 - down) / 2, (1 - across) / 2, down, across), size, shrinks=keep > size)
    start = (side - keep) // 2
    center = canvas[..., start : start + keep, start : start + keep]
    if keep == size:
        return center
    return F.interpolate(center, size=(size, size), mode="bilinear", antialias=True).clamp(0, 1)
