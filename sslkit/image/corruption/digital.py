"""What processing does to images."""

from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.image.corruption import filters
from sslkit.image.corruption.level import Draws, Level


def contrast(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Pull all values towards the mean of their channel."""
    factor = level.choose((0.75, 0.5, 0.4, 0.3, 0.15), (0.4, 0.3, 0.2, 0.1, 0.05))
    mean = images.mean(dim=(2, 3), keepdim=True)
    return (images - mean) * factor + mean


def elastic(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Move three points of the image, and every pixel a little, smoothly."""
    amplitude, smoothing, shift = level.choose(
        ((0, 0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        # The paper's are shares of 244 px, for images of 224.
        tuple(
            tuple(value * 244 / 224 for value in shares)
            for shares in ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02))
        ),
    )
    side = images.shape[-1]
    reach = 2 * (side // 3) / side
    before = torch.tensor([[reach, reach], [reach, -reach], [-reach, -reach]], device=images.device).expand(len(images), 3, 2)
    after = before + 2 * draws.uniform(-shift, shift, 3, 2)
    # Where each pixel comes from: the affine map that takes the moved points back.
    ones = torch.ones(len(images), 3, 1, device=images.device)
    back = torch.linalg.solve(torch.cat([after, ones], dim=2), before)
    fields = filters.blur_fields(draws.uniform(-1, 1, 2, side, side), smoothing * side)
    places = filters.grid(images) + 2 * amplitude * fields.permute(0, 2, 3, 1)
    homogeneous = torch.cat([places, torch.ones_like(places[..., :1])], dim=3)
    return filters.sample(images, torch.einsum("bhwi,bij->bhwj", homogeneous, back))


def pixelate(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Shrink by averages over boxes, and enlarge again."""
    share = level.choose((0.95, 0.9, 0.85, 0.75, 0.65), (0.6, 0.5, 0.4, 0.3, 0.25))
    side = images.shape[-1]
    few = max(1, int(side * share))
    there, back = (_boxes(*sides).to(images) for sides in ((side, few), (few, side)))
    matrix = back @ there
    resized: Tensor = matrix @ images @ matrix.T
    return resized


def jpeg(images: Tensor, level: Level, draws: Draws) -> Tensor:
    """Compress as JPEG; of other than three channels, each as a gray image."""
    quality = level.choose((80, 65, 58, 50, 40), (25, 18, 15, 10, 7))
    pixels = (255 * images.clamp(0, 1)).round().byte().cpu()
    planes = pixels.permute(0, 2, 3, 1) if images.shape[1] == 3 else pixels.flatten(0, 1)
    compressed = torch.from_numpy(np.stack([_compress(plane.numpy(), quality) for plane in planes]))
    compressed = compressed.permute(0, 3, 1, 2) if images.shape[1] == 3 else compressed.view(images.shape)
    return compressed.to(images) / 255


def _compress(pixels: np.ndarray, quality: int) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray(pixels).save(stream, format="JPEG", quality=quality)
    with Image.open(stream) as image:
        return np.array(image)


def _boxes(length: int, count: int) -> Tensor:
    """Return weights `[count, length]` that average pixels over boxes, as Pillow's box filter does."""
    scale = length / count
    centers = (torch.arange(count, dtype=torch.float64)[:, None] + 0.5) * scale
    offset = (torch.arange(length) + 0.5 - centers) / max(scale, 1)
    weights = ((offset > -0.5) & (offset <= 0.5)).float()
    return weights / weights.sum(dim=1, keepdim=True)
