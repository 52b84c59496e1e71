"""What the machinery asks of clips."""

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.modality import Modality
from sslkit.contract.source import Source
from sslkit.contract.task import Batch, DataInfo
from sslkit.video.baselines import RawFrames
from sslkit.video.encoders.base import VideoEncoder
from sslkit.video.options import VideoOptions
from sslkit.video.source import VideoSource
from sslkit.video.transforms import crop_clip

_PIXELS = 16  # a side, of the frames that are a baseline
_SCALE = 0.5  # area of the crops of labeled clips, at least


class CroppedClips:
    """Crop labeled clips, all frames alike, and mirror half of them."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, batch: Batch, target: Tensor) -> tuple[Batch, Tensor]:
        """Return `video` `[B, T, C, size, size]` and the targets."""
        return {"video": crop_clip(batch["video"], self.size, _SCALE, batch["aspect"], flipped=0.5)}, target


class VideoModality(Modality):
    """Clips `[B, T, C, H, W]`, floats in [0, 1], whose frames may also be encoded as images."""

    options: ClassVar = VideoOptions
    source: ClassVar = VideoSource
    encodes: ClassVar = ("image", "video")
    encoder_channels: ClassVar = 3
    encoder_size: ClassVar = 32
    small_options: ClassVar = {"video_micro": {"width": "32", "depth": "2", "patch": "8"}}
    suggestions: ClassVar = {"tubelets": "video_micro", "tokens": "video_micro"}

    def default_encoder(self, info: DataInfo, requires: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return the small transformer on tubelets."""
        return "video_micro", "the fastest for clips"

    def small_encoder(self, requires: tuple[str, ...], exact: bool) -> str:
        """Return the same; it has no BatchNorm."""
        return "video_micro"

    def baseline(self, encoder: Encoder, channels: int, size: int, detail: int) -> tuple[str, Encoder] | None:
        """Return the pixels of a few frames."""
        if not isinstance(encoder, VideoEncoder):
            return None
        raw = RawFrames(channels, size, _PIXELS, encoder.frames, encoder.frame_step)
        return f"raw pixels of {raw.count} frames, {raw.side} px", raw

    def augmentation(self, options: Any, info: DataInfo, classes: int) -> CroppedClips:
        """Return what crops clips; raises SslkitError for options that change images."""
        self.refuse_image_augmentation(options)
        return CroppedClips(info.size)

    def thumbnail(self, source: Source, row: int) -> Image.Image | None:
        """Return the frame in the middle of a clip."""
        assert isinstance(source, VideoSource)
        arrays, broken = source.read(np.array([row]))
        return None if broken else Image.fromarray(arrays["video"][0, arrays["video"].shape[1] // 2])

    def example_inputs(self, count: int, channels: int, size: int) -> tuple[Tensor, str]:
        """Return squares that move, `[count, 16, channels, size, size]`."""
        clips, side = torch.zeros(count, 16, channels, size, size), max(1, size // 4)
        for number, clip in enumerate(clips):
            for time, frame in enumerate(clip):
                left, top = (number * 3 + time) % (size - side + 1), (number * 5 + time) % (size - side + 1)
                frame[:, top : top + side, left : left + side] = 1
        return clips, "moving squares"
