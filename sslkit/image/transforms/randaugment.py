"""RandAugment and random erasing, batched: each operation is applied to its own part of a batch."""

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.image.transforms.color import grayscale
from sslkit.nn.constants import constant

STRONGEST = 30  # the largest magnitude
_BLUR = (((1.0, 1.0, 1.0), (1.0, 5.0, 1.0), (1.0, 1.0, 1.0)),)  # PIL's SMOOTH filter, times 13
_LEVELS = 255


def rand_augment(image: Tensor, magnitude: float, operations: int = 2) -> Tensor:
    """Change images `[B, C, H, W]` by `operations` of fourteen, one after the other, at a magnitude from 0 to 30.

    The operations, each as likely, and their strengths are those of torchvision's RandAugment (Cubuk et al., 2020); images
    are interpolated bilinearly and filled with black.
    """
    strength = magnitude / STRONGEST
    for _ in range(operations):
        order = torch.randperm(len(image), device=image.device)
        # Parts of a fixed size, in random order, need no look at which image was assigned to which operation.
        choices = [_OPERATIONS[place] for place in torch.randperm(len(_OPERATIONS)).tolist()]
        parts = image[order].tensor_split(len(choices))
        changed = [choice(part, strength) for choice, part in zip(choices, parts, strict=True) if len(part)]
        image = torch.cat(changed)[order.argsort()].clamp(0, 1)
    return image


def erase(image: Tensor, probability: float, scale: tuple[float, float] = (0.02, 0.33)) -> Tensor:
    """Set a random box of each image `[B, C, H, W]` to black with the given probability (Zhong et al., 2020).

    The area, as a fraction of the image, is uniform in `scale`, the logarithm of height / width between those of 0.3 and 3.3.
    """
    batch, _, height, width = image.shape
    draws = torch.rand(5, batch, 1, device=image.device)
    area = scale[0] + (scale[1] - scale[0]) * draws[0]
    ratio = (math.log(0.3) + math.log(3.3 / 0.3) * draws[1]).exp()
    down, across = (area * ratio).sqrt().clamp(max=1), (area / ratio).sqrt().clamp(max=1)
    inside = []
    for place, extent, side in ((draws[2], down, height), (draws[3], across, width)):
        center = (torch.arange(side, device=image.device) + 0.5) / side
        start = place * (1 - extent)
        inside.append((center >= start) & (center < start + extent))
    box = inside[0][:, :, None] & inside[1][:, None, :] & (draws[4] < probability)[:, :, None]
    return image.masked_fill(box[:, None], 0.0)


def _random_sign(image: Tensor) -> Tensor:
    """Return 1 or -1 for each image, `[B]`."""
    return torch.randint(0, 2, (len(image),), device=image.device, dtype=image.dtype) * 2 - 1


def transform_affine(image: Tensor, rows: tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """Sample images through affine maps, whose six entries `[B]` count in pixels from the middle; outside is black."""
    height, width = image.shape[-2:]
    (a, b, c), (d, e, f) = rows
    theta = torch.stack([a, b * height / width, 2 * c / width, d * width / height, e, 2 * f / height], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    return F.grid_sample(image, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _shear(image: Tensor, strength: float, across: bool) -> Tensor:
    amount = 0.3 * strength * _random_sign(image)
    unit, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return transform_affine(image, ((unit, amount if across else zero, zero), (zero if across else amount, unit, zero)))


def _translate(image: Tensor, strength: float, across: bool) -> Tensor:
    amount = 150 / 331 * image.shape[-1 if across else -2] * strength * _random_sign(image)
    unit, zero = torch.ones_like(amount), torch.zeros_like(amount)
    return transform_affine(image, ((unit, zero, amount if across else zero), (zero, unit, zero if across else amount)))


def _rotate(image: Tensor, strength: float) -> Tensor:
    angle = math.radians(30) * strength * _random_sign(image)
    sine, cosine, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    return transform_affine(image, ((cosine, -sine, zero), (sine, cosine, zero)))


def _blend(image: Tensor, strength: float, base: Callable[[Tensor], Tensor]) -> Tensor:
    """Move images away from what `base` makes of them, or towards it, by up to 90%."""
    factor: Tensor = (1 + 0.9 * strength * _random_sign(image))[:, None, None, None]
    start = base(image)
    return start + factor * (image - start)


def _mean_gray(image: Tensor) -> Tensor:
    return grayscale(image, probability=1.0).mean(dim=(1, 2, 3), keepdim=True)


def smooth(image: Tensor) -> Tensor:
    """Return images `[B, C, H, W]` blurred by PIL's SMOOTH filter; pixels of the border are kept."""
    kernel = constant(_BLUR, image) / 13
    inner = F.conv2d(image, kernel.expand(image.shape[1], 1, 3, 3), groups=image.shape[1])
    blurred = image.clone()
    blurred[..., 1:-1, 1:-1] = inner
    return blurred


def posterize(image: Tensor, strength: float) -> Tensor:
    """Keep the higher 8 to 4 bits of each value."""
    step = 2 ** round(4 * strength)
    posterized: Tensor = ((image * _LEVELS).round() / step).floor() * step / _LEVELS
    return posterized


def autocontrast(image: Tensor) -> Tensor:
    """Stretch the values of each channel of each image to [0, 1]; those of a constant channel are kept."""
    low, high = image.amin(dim=(2, 3), keepdim=True), image.amax(dim=(2, 3), keepdim=True)
    constant = high <= low
    return torch.where(constant, image, (image - low) / torch.where(constant, 1.0, high - low))


def equalize(image: Tensor) -> Tensor:
    """Spread the values of each channel of each image `[B, C, H, W]` evenly, as PIL does at 8 bits."""
    values = (image * _LEVELS).round().clamp(0, _LEVELS).long().flatten(2)
    counts = torch.zeros(*values.shape[:2], _LEVELS + 1, device=image.device, dtype=torch.int64)
    counts.scatter_add_(2, values, torch.ones_like(values))
    above = torch.arange(_LEVELS + 1, device=image.device) * (counts > 0)
    last = counts.gather(2, above.amax(dim=2, keepdim=True))  # pixels of the largest value
    step = (values.shape[2] - last) // _LEVELS
    table = ((counts.cumsum(dim=2) - counts + step // 2) // step.clamp(min=1)).clamp(0, _LEVELS)
    equalized = torch.where(step > 0, table.gather(2, values), values)
    return (equalized.to(image.dtype) / _LEVELS).view(image.shape)


_OPERATIONS: tuple[Callable[[Tensor, float], Tensor], ...] = (
    lambda image, strength: image,
    partial(_shear, across=True),
    partial(_shear, across=False),
    partial(_translate, across=True),
    partial(_translate, across=False),
    _rotate,
    partial(_blend, base=torch.zeros_like),  # brightness
    partial(_blend, base=partial(grayscale, probability=1.0)),  # color
    partial(_blend, base=_mean_gray),  # contrast
    partial(_blend, base=smooth),  # sharpness
    posterize,
    lambda image, strength: torch.where(image >= 1 - strength, 1 - image, image),  # solarize
    lambda image, strength: autocontrast(image),
    lambda image, strength: equalize(image),
)
