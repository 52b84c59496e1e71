"""Pictures of sound: spectrograms, and what is known of their frames."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.audio.encoders.base import FrameEncoder
from sslkit.audio.spectrogram import LogMel
from sslkit.image.transforms import gray_out_patches
from sslkit.pictures import heat_map

_HEIGHT, _WIDTH = 64, 96


def draw_spectrograms(sound: Tensor, sample_rate: int) -> Tensor:
    """Draw sound `[N, T]` as log-mel spectrograms, low frequencies at the bottom, `[N, 3, 64, 96]`."""
    bands = LogMel(sample_rate, mels=64).to(sound.device)(sound).flip(1)[:, None]
    return heat_map(F.interpolate(bands, size=(_HEIGHT, _WIDTH)))[:, 0]


def draw_masked(sound: Tensor, mask: Tensor, encoder: FrameEncoder) -> Tensor:
    """Draw sound `[N, T]` as `draw_spectrograms` does, with gray in place of masked frames, bool `[N, frames]`."""
    gray = _over_time(mask[:, None].float(), sound.shape[1], encoder)[:, :, None] > 0.5
    return torch.where(gray, 0.5, draw_spectrograms(sound, encoder.sample_rate))


def draw_patches(picture: Tensor, masked: Tensor, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Draw spectrograms `[N, 1, bands, frames]`, low bands at the bottom, and the same with masked patches `[N, H]` gray."""
    colored = heat_map(picture[:, 0].flip(1))
    hidden = gray_out_patches(torch.zeros_like(picture), masked, grid).flip(2) > 0
    return colored, torch.where(hidden, 0.5, colored)


def draw_labels(labels: Tensor, recorded: Tensor, samples: int, encoder: FrameEncoder) -> Tensor:
    """Draw labels of frames, int64 `[N, frames]`, as colors over time, `[N, 3, 64, 96]`; white where nothing is recorded."""
    hue = labels * 0.618034  # the golden ratio: neighboring numbers get colors that are far apart
    colors = torch.stack([0.5 + 0.5 * torch.cos(2 * math.pi * (hue + third / 3)) for third in range(3)], dim=1)
    colors = torch.where(recorded[:, None], colors, 1.0)
    return _over_time(colors, samples, encoder)[:, :, None].expand(-1, -1, _HEIGHT, -1)


def _over_time(values: Tensor, samples: int, encoder: FrameEncoder) -> Tensor:
    """Return values of frames, `[N, C, frames]`, at the columns of a picture of so many samples, `[N, C, 96]`."""
    convolutions = encoder.convolutions
    middle = (torch.arange(_WIDTH, device=values.device) + 0.5) * samples / _WIDTH - convolutions.reach / 2
    frame = (middle / convolutions.hop).round().long().clamp(0, values.shape[2] - 1)
    return values[:, :, frame]
