"""Color transforms. Brightness, saturation and hue are one 3×3 matrix per sample; contrast is applied after it.

Hue is a rotation about the gray axis (1, 1, 1) instead of torchvision's detour through HSV, and values are clamped once, at
the end: so all of it is one matrix product per image. `color_jitter` documents where this differs from torchvision.
"""

import math

import torch
from torch import Tensor

from sslkit.nn.constants import constant
from sslkit.nn.fusion import fusible

# ITU-R BT.601, as in PIL's convert("L") and torchvision.
_LUMA = (0.299, 0.587, 0.114)


# Linear sRGB to XYZ, and the D65 white point.
_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))


_WHITE = (0.95047, 1.0, 1.08883)


_FROM_XYZ = torch.linalg.inv(torch.tensor(_XYZ, dtype=torch.float64)).tolist()


# What `color_matrix` adds up, flattened: orthogonal to the gray axis, the cross product with it, along it, and the luma.
_S = 1 / math.sqrt(3)


_COLOR_TERMS = (
    (2 / 3, -1 / 3, -1 / 3, -1 / 3, 2 / 3, -1 / 3, -1 / 3, -1 / 3, 2 / 3),
    (0.0, -_S, _S, _S, 0.0, -_S, -_S, _S, 0.0),
    (1 / 3,) * 9,
    _LUMA * 3,
)


def color_jitter(
    image: Tensor,
    brightness: float = 0.8,
    contrast: float = 0.8,
    saturation: float = 0.8,
    hue: float = 0.2,
    probability: float = 0.8,
    gray: float = 0.0,
) -> Tensor:
    """Jitter the colors of each image `[B, C, H, W]` with the given probability, then turn a fraction `gray` of them gray.

    Factors are uniform in [max(0, 1 - s), 1 + s]; hue is rotated by up to ±`hue` of a full circle. The order is fixed:
    brightness, saturation, hue, contrast. Brightness, saturation, contrast and gray each equal torchvision's functions
    where nothing is clamped; hue differs (a rotation about the gray axis), and torchvision clamps after each adjustment
    and shuffles their order. A single channel has neither saturation nor hue; channel counts other than 1 and 3 need both to
    be 0 (ValueError).
    """
    batch, channels = image.shape[:2]
    if channels not in (1, 3) and (saturation or hue):
        raise ValueError(f"saturation and hue are only defined for 1 or 3 channels (got {channels}): set both to 0")
    uniform = torch.rand(batch, 6, device=image.device, dtype=image.dtype)
    strengths = (brightness, contrast, saturation)
    limits = (tuple(max(0.0, 1.0 - strength) for strength in strengths), tuple(1.0 + strength for strength in strengths))
    constants = [constant(values, image) for values in (*limits, _luma_weights(channels), _COLOR_TERMS)]
    return _jitter(image, uniform, constants, hue=hue, probability=probability, gray=gray)


@fusible
def _jitter(image: Tensor, uniform: Tensor, constants: list[Tensor], *, hue: float, probability: float, gray: float) -> Tensor:
    """Change the colors of images by uniform draws `[B, 6]`; see `color_jitter`."""
    low, high, luma, terms = constants
    batch, channels = image.shape[:2]
    jittered = uniform[:, 4:5] < probability
    factors = torch.where(jittered, torch.lerp(low, high, uniform[:, :3]), 1.0)
    turn = torch.where(jittered[:, 0], hue * (2 * uniform[:, 3] - 1), 0.0)
    matrix = _color_matrix(factors[:, 0], factors[:, 2], turn, terms, channels)
    if gray:
        selected = uniform[:, 5] < gray
        matrix = torch.where(selected[:, None, None], (luma @ matrix)[:, None], matrix)
    # Contrast scales around the mean luma of the image after the matrix; the mean commutes with the matrix.
    contrast_factor = factors[:, 1, None, None]
    mean = luma @ (matrix @ image.mean(dim=(2, 3))[:, :, None])
    offset = ((1 - contrast_factor) * mean[:, None]).expand(batch, channels, 1)
    matrix = contrast_factor * matrix
    if torch.compiler.is_compiling():  # one kernel, which a matrix product would end
        return ((matrix[..., None, None] * image[:, None]).sum(dim=2) + offset[..., None]).clamp(0, 1)
    return torch.baddbmm(offset, matrix, image.flatten(2)).view(image.shape).clamp_(0, 1)


def color_matrix(brightness: Tensor, saturation: Tensor, turn: Tensor, channels: int = 3) -> Tensor:
    """Return matrices `[B, C, C]` that scale brightness, blend pixels with their luma, and rotate them about the gray axis.

    All arguments are `[B]`: saturation 0 is gray and 1 is the image; `turn` is a fraction of a full circle (Rodrigues'
    formula). The rotation leaves gray unchanged, so the product is the sum b s R + b (1 - s) 1 luma', where R has a cosine
    term, a sine term and the axis.
    """
    return _color_matrix(brightness, saturation, turn, constant(_COLOR_TERMS, turn), channels)


def _color_matrix(brightness: Tensor, saturation: Tensor, turn: Tensor, terms: Tensor, channels: int) -> Tensor:
    if channels != 3:
        return brightness[:, None, None] * torch.eye(channels, device=turn.device, dtype=turn.dtype)
    angle, chroma = 2 * math.pi * turn, brightness * saturation
    coefficients = torch.stack([chroma * angle.cos(), chroma * angle.sin(), chroma, brightness - chroma], dim=1)
    return (coefficients @ terms).view(-1, 3, 3)


def grayscale(image: Tensor, probability: float = 0.2) -> Tensor:
    """Convert each image `[B, C, H, W]` to gray with the given probability; the number of channels stays C."""
    selected = torch.rand(len(image), device=image.device) < probability
    gray = _weighted_sum(image, _luma_weights(image.shape[1]))[:, None]
    return torch.where(selected[:, None, None, None], gray, image)


def solarize(image: Tensor, threshold: float = 0.5, probability: float = 0.2) -> Tensor:
    """Invert the values at or above `threshold` of each image `[B, C, H, W]` with the given probability."""
    selected = torch.rand(len(image), device=image.device) < probability
    return torch.where(selected[:, None, None, None] & (image >= threshold), 1 - image, image)


def rgb_to_lab(image: Tensor) -> Tensor:
    """Return CIE L*a*b* (D65, 2 degrees) of sRGB images `[B, 3, H, W]` in [0, 1]: L in [0, 100], a and b in about ±110.

    (IEC 61966-2-1 for sRGB, CIE 15 for the rest; same as scikit-image's rgb2lab.)
    """
    linear = torch.where(image > 0.04045, ((image.clamp(min=0) + 0.055) / 1.055) ** 2.4, image / 12.92)
    ratio = torch.stack([_weighted_sum(linear, row) / white for row, white in zip(_XYZ, _WHITE, strict=True)], dim=1)
    cube = torch.where(ratio > 0.008856, ratio.clamp(min=1e-6) ** (1 / 3), 7.787 * ratio + 16 / 116)
    x, y, z = cube.unbind(1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """Return sRGB images `[B, 3, H, W]`, clamped to [0, 1], of CIE L*a*b* (D65): the inverse of `rgb_to_lab`."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    cube = torch.stack([y + a / 500, y, y - b / 200], dim=1)
    xyz = torch.where(cube > 0.2068966, cube**3, (cube - 16 / 116) / 7.787)
    xyz = torch.stack([white * channel for white, channel in zip(_WHITE, xyz.unbind(1), strict=True)], dim=1)
    linear = torch.stack([_weighted_sum(xyz, tuple(row)) for row in _FROM_XYZ], dim=1)
    return torch.where(linear > 0.0031308, 1.055 * linear.clamp(min=1e-6) ** (1 / 2.4) - 0.055, 12.92 * linear).clamp(0, 1)


def _weighted_sum(image: Tensor, weights: tuple[float, ...]) -> Tensor:
    """Return the weighted sum of the channels, `[B, H, W]`, without a matrix product, which autocast would round."""
    return torch.stack([weight * image[:, channel] for channel, weight in enumerate(weights)]).sum(dim=0)


def _luma_weights(channels: int) -> tuple[float, ...]:
    """Return the BT.601 weights for RGB, and equal weights for any other number of channels."""
    return _LUMA if channels == 3 else (1 / channels,) * channels
