"""The base class of encoders of point clouds."""

from typing import ClassVar

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError


class PointEncoder(Encoder):
    """Base of encoders of points `[B, N, 3 + F]`, coordinates in the unit ball."""

    modality: ClassVar = "points"
    sample_dims = 2


def check_width(name: str, in_channels: int, width: int, multiple: int) -> None:
    """Raise SslkitError for a width that an encoder of this name can't have, and for samples that are no points."""
    if width < multiple or width % multiple:
        raise SslkitError(f"width of {name} should be a multiple of {multiple} (got {width})", flag="encoder_option")
    if in_channels < 3:
        raise SslkitError(f"{name} is an encoder of points, which have 3 coordinates (got {in_channels})", flag="encoder")
