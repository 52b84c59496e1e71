"""What audio features have to beat: the mean spectrum."""

from typing import ClassVar

import torch
from torch import Tensor

from sslkit.audio.spectrogram import LogMel
from sslkit.contract.encoder import Encoder

BANDS = 64


class MeanSpectrum(Encoder):
    """Return the mean log-mel spectrum and its deviation over time: what features of sound have to beat."""

    modality: ClassVar = "audio"
    sample_dims = 1

    def __init__(self, sample_rate: int, mels: int) -> None:
        super().__init__(2 * mels, in_channels=1)
        self.sample_rate, self.spectrogram = sample_rate, LogMel(sample_rate, mels)
        self.recipe = {"name": "mean spectrum", "sample_rate": sample_rate, "mels": mels}

    def forward(self, sample: Tensor) -> Tensor:
        """Return `[B, 2 * mels]`, the level taken off: it is the recording's, not the sound's."""
        bands = self.spectrogram(sample)
        mean = bands.mean(dim=2)
        return torch.cat([mean - mean.mean(dim=1, keepdim=True), bands.std(dim=2, correction=0)], dim=1)
