"""What the machinery asks of clips."""

from typing import ClassVar

from sslkit.contract.encoder import Encoder
from sslkit.contract.modality import Modality
from sslkit.contract.task import DataInfo
from sslkit.image.modality import ImageModality
from sslkit.video.options import VideoOptions
from sslkit.video.source import VideoSource

_FRAMES = ImageModality()


class VideoModality(Modality):
    """Clips, whose frames are encoded as images."""

    options: ClassVar = VideoOptions
    source: ClassVar = VideoSource
    encoder_modality: ClassVar = "image"
    encoder_channels: ClassVar = 3
    small_options: ClassVar = ImageModality.small_options
    suggestions: ClassVar = ImageModality.suggestions

    def default_encoder(self, info: DataInfo, requires: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return an encoder of images."""
        return _FRAMES.default_encoder(info, requires, on_cpu)

    def small_encoder(self, requires: tuple[str, ...], exact: bool) -> str:
        """Return a small encoder of images."""
        return _FRAMES.small_encoder(requires, exact)

    def baseline(self, encoder: Encoder, channels: int, size: int, detail: int) -> tuple[str, Encoder] | None:
        """Return the mean frame."""
        return _FRAMES.baseline(encoder, channels, size, detail)
