"""Statistics that describe the texture of sound, whatever its order in time."""

import torch
from torch import Tensor, nn

from sslkit.audio.encoders.base import recorded_samples
from sslkit.audio.spectrogram import LogMel

_BANDS = 32
_COMPRESSION = 0.3  # exponent of magnitudes
_MODULATIONS = 6  # octaves below half the frame rate, 50 Hz
_NEIGHBORS = 4  # bands up to so many apart are correlated


class SoundTexture(nn.Module):
    """Describe sound `[B, T]` by statistics of 32 bands' envelopes, `[B, 374]` (McDermott & Simoncelli, 2011).

    Of each band its mean, its deviation, and what part of its variance lies in each of six octaves of modulation; of bands that
    are near each other their correlation. Mel bands take the place of a cochlear filter bank. The level has no influence.
    """

    width = _BANDS * (2 + _MODULATIONS) + sum(_BANDS - apart for apart in range(1, _NEIGHBORS + 1))

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.spectrogram = LogMel(sample_rate, _BANDS)

    def forward(self, sound: Tensor) -> Tensor:
        """Return the statistics over the recorded part of each sound, `[B, 374]`."""
        recorded_count = recorded_samples(sound)[:, None]
        level = (sound.square().sum(dim=1, keepdim=True) / recorded_count.clamp(min=1)).sqrt()
        envelope = (self.spectrogram(sound / level.clamp(min=1e-6)) * _COMPRESSION / 2).exp()  # of energies, [B, bands, frames]
        frames = envelope.shape[2]
        hop = self.spectrogram.hop
        count = (recorded_count[..., None] // hop + 1).clamp(max=frames)
        recorded = torch.arange(frames, device=sound.device) < count
        envelope = envelope / ((envelope * recorded).sum(dim=(1, 2), keepdim=True) / count / _BANDS)
        mean = (envelope * recorded).sum(dim=2, keepdim=True) / count
        centered = (envelope - mean) * recorded
        deviation = (centered.square().sum(dim=2, keepdim=True) / count).sqrt()
        scaled = centered / deviation.clamp(min=1e-4)
        power = torch.fft.rfft(scaled).abs().square()  # [B, bands, frames // 2 + 1]
        octave = torch.linspace(0, 1, power.shape[2], device=sound.device).clamp(min=1e-6).log2().neg().ceil()
        octaves = octave[:, None] == torch.arange(1, _MODULATIONS + 1, device=sound.device)
        modulation = power @ octaves.to(power.dtype) / power.sum(dim=2, keepdim=True).clamp(min=1e-6)
        correlations = [
            (scaled[:, apart:] * scaled[:, :-apart]).sum(dim=2) / count[:, :, 0] for apart in range(1, _NEIGHBORS + 1)
        ]
        statistics = [mean[..., 0], deviation[..., 0] / mean[..., 0], modulation.flatten(1), *correlations]
        return torch.cat(statistics, dim=1)
