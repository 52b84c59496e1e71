"""WavLM (Chen et al., 2022)."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor

from sslkit import Batch, Paper
from sslkit.audio.frame_clusters import PAPER_SETTINGS, UNSUPPORTED, FrameClusterOptions, FrameClusterTask

_NOISE = 0.1  # of mixed recordings get noise, the others speech
_SPEECH_DECIBELS, _NOISE_DECIBELS = (-5.0, 5.0), (-5.0, 20.0)  # energy of the recording over what is added


class WavLM(FrameClusterTask):
    """Predict the clusters of masked frames of recordings into which others are mixed (WavLM; Chen et al., 2022).

    As HuBERT, and the clusters are those of the recording alone. Frames know their distances, by a bias that they gate.
    """

    class Options(FrameClusterOptions):
        """Options of `wavlm`."""

        mix: float = Field(default=0.2, ge=0, le=1, description="Share of recordings into which another, or noise, is mixed.")

    options: Options
    requires: ClassVar = ("frames", "relative")
    paper: ClassVar = Paper(
        source="section IV of the paper, Base",
        settings={**PAPER_SETTINGS, "steps": 400_000},
        unsupported=(*UNSUPPORTED, "noises of the DNS challenge (here white noise)"),
    )

    def _sound(self, batch: Batch) -> Tensor:
        """Return recordings, of which some have a part of another one or noise in at most half of them (algorithm 1)."""
        sound = batch["audio"][:, 0]
        if self.options.mix == 0:
            return super()._sound(batch)
        (count, samples), device = sound.shape, sound.device
        noisy = torch.rand(count, 1, device=device) < _NOISE
        added = torch.where(noisy, torch.randn_like(sound), sound.roll(1, dims=0))
        length = 1 + (torch.rand(count, 1, device=device) * (samples // 2)).long()
        start, shift = ((torch.rand(count, 1, device=device) * (samples - length + 1)).long() for _ in range(2))
        place = torch.arange(samples, device=device)
        inside = (place >= start) & (place < start + length) & (torch.rand(count, 1, device=device) < self.options.mix)
        added = added.gather(1, (place - start + shift) % samples) * inside
        low, high = (torch.where(noisy, *ends) for ends in zip(_NOISE_DECIBELS, _SPEECH_DECIBELS, strict=True))
        decibels = low + (high - low) * torch.rand(count, 1, device=device)
        return mix(sound, added, inside, decibels)


def mix(sound: Tensor, added: Tensor, inside: Tensor, decibels: Tensor) -> Tensor:
    """Return sound `[B, T]` with another added `inside` a region, whose energy there is lower by `decibels` `[B, 1]`.

    Where either is silent in the region, nothing is added.
    """
    energy, other = ((part.square() * inside).sum(dim=1, keepdim=True) for part in (sound, added))
    gain = (energy / other.clamp(min=1e-12) * 10 ** (-decibels / 10)).sqrt()
    return sound + torch.where((energy > 1e-8) & (other > 1e-8), gain, 0.0) * added * inside
