"""What the machinery asks of recordings."""

from typing import Any, ClassVar

import torch
from torch import Tensor

from sslkit.audio.baselines import MFCCStatistics
from sslkit.audio.encoders.base import AudioEncoder
from sslkit.audio.options import AudioOptions
from sslkit.audio.source import AudioSource
from sslkit.contract.encoder import Encoder
from sslkit.contract.modality import Modality
from sslkit.contract.task import Batch, DataInfo

_LOUDER = 2.0  # the factor by which labeled recordings may be louder or quieter
_NOISE = 0.01  # of a recording's deviation, added to it


class ChangedLevels:
    """Make labeled recordings louder or quieter, and add a little noise where there is sound; of two windows one is taken."""

    def __call__(self, batch: Batch, target: Tensor) -> tuple[Batch, Tensor]:
        """Return `audio` `[B, T]` and the targets."""
        sound = batch["audio"][:, 0]
        level = _LOUDER ** (2 * torch.rand(len(sound), 1, device=sound.device) - 1)
        noise = _NOISE * sound.std(dim=1, keepdim=True) * torch.randn_like(sound) * (sound != 0)
        return {"audio": level * (sound + noise)}, target


class AudioModality(Modality):
    """Windows of recordings `[B, T]`, floats in [-1, 1]."""

    options: ClassVar = AudioOptions
    source: ClassVar = AudioSource
    encoder_channels: ClassVar = 1
    small_options: ClassVar = {
        "audio_micro": {"width": "8", "mels": "32"},
        "speech_micro": {"width": "32", "depth": "2", "channels": "16"},
        "wavlm_micro": {"width": "32", "depth": "2", "channels": "16"},
        "cpc_micro": {"width": "16"},
        "spectrogram:vit_micro": {"mels": "32", "width": "32", "depth": "2", "patch": "8"},
    }
    suggestions: ClassVar = {  # frames have all of the first three
        "causal": "cpc_micro",
        "relative": "wavlm_micro",
        "frames": "speech_micro",
        "spectrogram_patches": "spectrogram:vit_micro",
    }

    def default_encoder(self, info: DataInfo, requires: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return the small network on spectrograms, or the one that has what a task requires."""
        reasons = {
            "cpc_micro": "its frames know only what came before",
            "wavlm_micro": "it knows the distances of frames",
            "speech_micro": "it describes frames",
            "spectrogram:vit_micro": "it describes patches of spectrograms",
            "audio_micro": "the fastest for audio",
        }
        name = self.small_encoder(requires, exact=False)
        return name, reasons[name]

    def small_encoder(self, requires: tuple[str, ...], exact: bool) -> str:
        """Return the same; none of them has BatchNorm."""
        return next((name for need, name in self.suggestions.items() if need in requires), "audio_micro")

    def baseline(self, encoder: Encoder, channels: int, size: int, detail: int) -> tuple[str, Encoder] | None:
        """Return statistics of MFCC over time."""
        assert isinstance(encoder, AudioEncoder)
        return "MFCC, mean and deviation", MFCCStatistics(encoder.sample_rate)

    def augmentation(self, options: Any, info: DataInfo, classes: int) -> ChangedLevels:
        """Return what changes levels; raises SslkitError for options that change images."""
        self.refuse_image_augmentation(options)
        return ChangedLevels()

    def example_inputs(self, count: int, channels: int, size: int) -> tuple[Tensor, str]:
        """Return chords `[count, samples]`, of `size` milliseconds at 16 kHz: encoders take any length."""
        random = torch.Generator().manual_seed(0)
        time = torch.arange(16 * size) / 16_000
        pitches = 200 + 1000 * torch.rand(count, 3, 1, generator=random)
        return 0.3 * torch.sin(2 * torch.pi * pitches * time).mean(dim=1), "chords"
