"""What features of clips have to beat: the pixels of a few frames."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.video.encoders.base import VideoEncoder

_FRAMES = 4


class RawFrames(VideoEncoder):
    """Return the pixels of four frames, shrunk to at most `side` pixels."""

    def __init__(self, in_channels: int, size: int, side: int, frames: int, frame_step: int) -> None:
        self.side, self.count = min(size, side), min(_FRAMES, frames)
        super().__init__(self.count * in_channels * self.side**2, in_channels, frames, frame_step)
        self.recipe = {"name": "normalized frames", "in_channels": in_channels, "size": self.side, "frames": self.count}

    def forward(self, sample: Tensor) -> Tensor:
        """Return `[B, frames * C * side * side]`."""
        numbers = torch.linspace(0, sample.shape[1] - 1, self.count).round().long().to(sample.device)
        frames = self.normalize(sample[:, numbers]).flatten(1, 2)
        if frames.shape[-1] > self.side:
            frames = F.interpolate(frames, size=(self.side, self.side), mode="bilinear", antialias=True)
        return frames.flatten(1)
