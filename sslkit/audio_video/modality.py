"""What the machinery asks of videos with sound."""

from typing import ClassVar

from sslkit.audio_video.options import AudioVideoOptions
from sslkit.audio_video.source import AudioVideoSource
from sslkit.contract.modality import Modality


class AudioVideoModality(Modality):
    """Moments of videos: a frame, and the sound around it. Encoders are of images, and evaluated on frames."""

    options: ClassVar = AudioVideoOptions
    source: ClassVar = AudioVideoSource
    encodes: ClassVar = ("image",)
    evaluated_as: ClassVar = "video"
    encoder_channels: ClassVar = 3
    encoder_size: ClassVar = 32
