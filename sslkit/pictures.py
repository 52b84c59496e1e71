"""Pictures for previews of tasks: float `[N, C, H, W]` in [0, 1], arranged in columns, grids and sheets."""

from typing import BinaryIO

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

_CORRECT, _INCORRECT = (0.18, 0.62, 0.34), (0.85, 0.25, 0.2)


_HEAT = ((0.0, 0.0, 0.0), (0.3, 0.07, 0.43), (0.73, 0.21, 0.33), (0.98, 0.55, 0.04), (0.99, 1.0, 0.9))


_TILE, _GAP, _TEXT = 96, 6, 15


def to_rgb(image: Tensor) -> Tensor:
    """Return `[..., 3, H, W]` for any number of channels: gray for one, else the first three, padded with zeros."""
    channels = image.shape[-3]
    if channels == 1:
        return image.expand(*image.shape[:-3], 3, *image.shape[-2:])
    return image[..., :3, :, :] if channels >= 3 else F.pad(image, (0, 0, 0, 0, 0, 3 - channels))


def as_tile(picture: Tensor, side: int) -> Image.Image:
    """Return a picture `[C, H, W]` as an image of `side` pixels; small ones keep their pixels."""
    image = Image.fromarray((255 * to_rgb(picture).cpu()).round().byte().permute(1, 2, 0).numpy())
    return image.resize((side, side), Image.Resampling.NEAREST if image.height < side else Image.Resampling.LANCZOS)


def heat_map(values: Tensor) -> Tensor:
    """Color maps `[..., H, W]` as pictures `[..., 3, H, W]`, from black (the minimum of each map) to white (its maximum)."""
    low, high = values.amin(dim=(-2, -1), keepdim=True), values.amax(dim=(-2, -1), keepdim=True)
    position = (values - low) / (high - low).clamp(min=1e-6) * (len(_HEAT) - 1)
    below = position.floor().clamp(max=len(_HEAT) - 2)
    colors = torch.tensor(_HEAT, device=values.device, dtype=values.dtype)
    picture = torch.lerp(colors[below.long()], colors[below.long() + 1], (position - below)[..., None])
    return picture.movedim(-1, -3)


def add_frame(image: Tensor, correct: Tensor, width: int = 1) -> Tensor:
    """Add a frame around images `[..., C, H, W]`, green where `correct` (bool `[...]`), else red."""
    image = F.pad(to_rgb(image), (width,) * 4)
    colors = torch.where(correct[..., None], image.new_tensor(_CORRECT), image.new_tensor(_INCORRECT))
    frame = torch.ones(image.shape[-2:], dtype=torch.bool, device=image.device)
    frame[width:-width, width:-width] = False
    return torch.where(frame, colors[..., None, None], image)


def tile_grid(tiles: Tensor, columns: int, gap: int = 1) -> Tensor:
    """Arrange tiles `[N, V, C, s, s]` in row-major order as one picture per sample, white between them, `[N, C, H, W]`."""
    tiles = F.pad(tiles, (0, gap, 0, gap), value=1.0)
    lines = [torch.cat(list(line.unbind(1)), dim=-1) for line in tiles.split(columns, dim=1)]
    return torch.cat(lines, dim=-2)[..., :-gap, :-gap]


def pad_or_shrink(image: Tensor, size: int) -> Tensor:
    """Center images `[..., C, h, w]` on white squares of `size` pixels; shrink those that are larger to `size`."""
    height, width = image.shape[-2:]
    if max(height, width) > size:
        flat = F.interpolate(image.reshape(-1, *image.shape[-3:]), size=(size, size), mode="bilinear", antialias=True)
        return flat.view(*image.shape[:-2], size, size)
    left, top = (size - width) // 2, (size - height) // 2
    return F.pad(image, (left, size - width - left, top, size - height - top), value=1.0)


def side_by_side(*columns: Tensor) -> Tensor:
    """Stack pictures `[N, C, H, W]` of any sizes and channels as columns, `[N, columns, 3, H, W]`, smaller ones on white."""
    size = max(max(column.shape[-2:]) for column in columns)
    return torch.stack([pad_or_shrink(to_rgb(column), size) for column in columns], dim=1)


def contact_sheets(image: Tensor, labels: Tensor, rows: int = 8, columns: int = 8) -> Tensor:
    """Return a row of images for each of the most frequent labels, `[rows, columns, C, H, W]`, white after the last image."""
    frequent = torch.bincount(labels).argsort(descending=True, stable=True)[:rows]
    sheet = torch.ones(len(frequent), columns, *image.shape[1:], device=image.device)
    for line, label in zip(sheet, frequent, strict=True):
        members = image[labels == label][:columns]
        line[: len(members)] = members
    return sheet


def draw_previews(pictures: Tensor, names: tuple[str, ...], stream: BinaryIO) -> None:
    """Write pictures `[N, columns, C, H, W]` as one PNG with a row per sample and the column names above."""
    pictures = to_rgb(pictures).clamp(0, 1).cpu()
    rows, columns, _, height, width = pictures.shape
    scale = max(1, round(_TILE / height))  # an integer, so that pixels of small images stay sharp
    tile_height, tile_width = height * scale, width * scale
    title = _TEXT + _GAP if names else 0
    sheet = Image.new("RGB", (columns * (tile_width + _GAP) + _GAP, rows * (tile_height + _GAP) + _GAP + title), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    values = (pictures * 255).round().byte().permute(0, 1, 3, 4, 2).numpy()
    for column in range(columns):
        left = _GAP + column * (tile_width + _GAP)
        if column < len(names):
            pen.text((left, _GAP), names[column], fill="black", font=font)
        for row in range(rows):
            tile = Image.fromarray(values[row, column]).resize((tile_width, tile_height), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, title + _GAP + row * (tile_height + _GAP)))
    sheet.save(stream, format="PNG")
