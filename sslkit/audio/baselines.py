"""What audio features have to beat: the mean spectrum."""

import torch
from torch import Tensor

from sslkit.audio.encoders.base import AudioEncoder
from sslkit.audio.spectrogram import LogMel

BANDS = 64


class MeanSpectrum(AudioEncoder):
    """Return the mean log-mel spectrum and its deviation over time: what features of sound have to beat."""

    def __init__(self, sample_rate: int, mels: int) -> None:
        super().__init__(2 * mels, in_channels=1)
        self.sample_rate, self.spectrogram = sample_rate, LogMel(sample_rate, mels)
        self.recipe = {"name": "mean spectrum", "sample_rate": sample_rate, "mels": mels}

    def forward(self, sample: Tensor) -> Tensor:
        """Return `[B, 2 * mels]`, the level taken off: it is the recording's, not the sound's."""
        bands = self.spectrogram(sample)
        mean = bands.mean(dim=2)
        return torch.cat([mean - mean.mean(dim=1, keepdim=True), bands.std(dim=2, correction=0)], dim=1)
