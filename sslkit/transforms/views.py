"""The views that contrastive and clustering tasks compare."""

from torch import Tensor

from sslkit.errors import SslkitError
from sslkit.transforms.blur import gaussian_blur
from sslkit.transforms.color import color_jitter, grayscale
from sslkit.transforms.geometry import flip, random_resized_crop


def usual_blur(size: int) -> float:
    """Return the usual rate of blurred views of images of `size` pixels: none up to 64, half of larger ones."""
    return 0.0 if size <= 64 else 0.5


def check_hue(channels: int, color_strength: float) -> None:
    """Raise SslkitError if images of so many channels have no hue and their colours are to be jittered."""
    if channels not in (1, 3) and color_strength:
        raise SslkitError(f"--color-strength: images of {channels} channels have no hue", "set it to 0")


def strong_view(
    image: Tensor,
    size: int,
    scale: tuple[float, float] = (0.08, 1.0),
    color_strength: float = 1.0,
    gray: float = 0.2,
    blur: float = 0.5,
) -> Tensor:
    """Return one view of each image `[B, C, H, W]`: crop, flip, colour jitter, gray, blur, as in SimCLR.

    (Chen et al., 2020, appendix A.) `color_strength` scales the jitter 0.8/0.8/0.8/0.2; `gray` and `blur` are rates.
    """
    image = flip(random_resized_crop(image, size, scale=scale))
    strength = 0.8 * color_strength
    image = color_jitter(image, strength, strength, strength, min(0.5, 0.2 * color_strength))
    return gaussian_blur(grayscale(image, gray), probability=blur)
