"""What audio features have to beat: statistics of MFCC."""

import torch
from torch import Tensor

from sslkit.audio.encoders.base import AudioEncoder, recorded_frames
from sslkit.audio.spectrogram import MFCC


class MFCCStatistics(AudioEncoder):
    """Return the means of MFCC over time, and the deviations of these and their derivatives: what features have to beat.

    Frames have 25 ms, every 10 ms; the mean of the first coefficient, which is the level, is left out.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__(12 + 39, in_channels=1)
        self.sample_rate, self.mfcc = sample_rate, MFCC(sample_rate, round(0.025 * sample_rate), round(0.010 * sample_rate))
        self.recipe = {"name": "MFCC statistics", "sample_rate": sample_rate}

    def forward(self, sample: Tensor) -> Tensor:
        """Return `[B, 51]`."""
        recorded = recorded_frames(sample, self.mfcc.spectrogram.length, self.mfcc.spectrogram.hop)
        values, mean = self.mfcc(sample, recorded)
        frames = recorded.sum(dim=1, keepdim=True)
        return torch.cat([mean[:, 1:13], (values.square().sum(dim=1) / frames).sqrt()], dim=1)
