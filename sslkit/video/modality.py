"""What the machinery asks of clips."""

from typing import ClassVar

from sslkit.contract.modality import Modality
from sslkit.video.options import VideoOptions
from sslkit.video.source import VideoSource


class VideoModality(Modality):
    """Clips `[B, T, C, H, W]`, floats in [0, 1], whose frames may also be encoded as images."""

    options: ClassVar = VideoOptions
    source: ClassVar = VideoSource
    encodes: ClassVar = ("image", "video")
    encoder_channels: ClassVar = 3
