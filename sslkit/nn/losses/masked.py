"""Error measures of reconstructed images."""

from torch import Tensor

_MIN_VARIANCE = 1e-4  # an image of less variance is a single color, with nothing to predict


def error_share(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of images `[B, C, H, W]`, relative to that of each target's mean color, `[B]`."""
    variance = (target - target.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3))
    return (prediction - target).square().mean(dim=(1, 2, 3)) / variance.clamp(min=_MIN_VARIANCE)
