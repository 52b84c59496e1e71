"""Measures of reconstruction."""

from torch import Tensor

_FLAT = 1e-4  # variance of a picture below which nothing is there to be told


def error_share(told: Tensor, true: Tensor) -> Tensor:
    """Return the squared error of pictures `[B, C, H, W]` as a share of what each one's own mean color would make, `[B]`."""
    plain = (true - true.mean(dim=(2, 3), keepdim=True)).square().mean(dim=(1, 2, 3))
    return (told - true).square().mean(dim=(1, 2, 3)) / plain.clamp(min=_FLAT)
