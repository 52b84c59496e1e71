"""The base class of encoders of clips."""

from typing import ClassVar

from sslkit.contract.errors import SslkitError
from sslkit.image.encoders.base import ImageEncoder


class VideoEncoder(ImageEncoder):
    """Base of encoders of clips `[B, T, C, H, W]`, floats in [0, 1], whose frames they normalize themselves.

    `frames` is T, and `frame_step` the largest distance of frames, of the windows that it was trained on: evaluations show it
    the same.
    """

    modality: ClassVar = "video"
    sample_dims = 4

    def __init__(
        self,
        width: int,
        in_channels: int,
        frames: int,
        frame_step: int,
        normalization: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ) -> None:
        super().__init__(width, in_channels, normalization)
        self.frames, self.frame_step = frames, frame_step


def check_frames(encoder: str, in_channels: int, frames: int, frame_step: int) -> None:
    """Raise SslkitError for what is no window of a video."""
    if in_channels not in (1, 3):
        raise SslkitError(f"{encoder} is an encoder of video, which has 3 channels (got {in_channels})", flag="encoder")
    for name, value in (("frames", frames), ("frame_step", frame_step)):
        if not 1 <= value <= 256:
            raise SslkitError(f"{name} should be 1 to 256 (got {value})", flag="encoder_option")
