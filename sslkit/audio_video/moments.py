"""What tasks on moments of videos share: crops of their frames."""

from torch import Tensor

from sslkit.image.transforms import color_jitter, random_resized_crop

_BRIGHTNESS, _SATURATION = 0.4, 0.4


def crop_moments(frames: Tensor, size: int, scale: float, aspect: Tensor) -> Tensor:
    """Return a random crop of each frame of `[B, M, C, H, W]`, half of them mirrored, with other brightness and saturation."""
    flat: Tensor = random_resized_crop(
        frames.flatten(0, 1), size, (scale, 1.0), flipped=0.5, aspect=aspect.repeat_interleave(frames.shape[1])
    )
    moments: Tensor = color_jitter(flat, _BRIGHTNESS, 0.0, _SATURATION, 0.0).unflatten(0, frames.shape[:2])
    return moments
