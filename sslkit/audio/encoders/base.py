"""The base classes of encoders of audio."""

from typing import ClassVar

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError


class AudioEncoder(Encoder):
    """Base of encoders of audio `[B, T]`, floats in [-1, 1] at `sample_rate` Hz."""

    modality: ClassVar = "audio"
    sample_dims = 1
    sample_rate: int


_GAIN = 10.0  # speech has a deviation of about 0.1


class FrameEncoder(AudioEncoder):
    """Base of encoders that describe frames of a recording: convolutions on the waveform, and what makes contexts of them.

    The zeros that follow a recording shorter than its window are no part of it: no frame of them is pooled, and no other frame
    attends to one.
    """

    provides: tuple[str, ...] = ("pooled", "tokens", "layers", "frames")

    def __init__(self, width: int, sample_rate: int, convolutions: "WaveConvolutions") -> None:
        super().__init__(width, in_channels=1)
        self.sample_rate, self.convolutions = sample_rate, convolutions

    def frames(self, sound: Tensor) -> Tensor:
        """Return what the convolutions compute of each frame, `[B, N, channels]`."""
        frames: Tensor = self.convolutions(sound)
        return frames

    def recorded_frames(self, sound: Tensor) -> Tensor:
        """Return which frames lie within the recording, at least the first, bool `[B, N]`."""
        return recorded_frames(sound, self.convolutions.reach, self.convolutions.hop)

    def contexts(
        self, frames: Tensor, recorded: Tensor, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> list[Tensor]:
        """Return what each layer makes of frames `[B, N, channels]`, `[B, N, width]` each.

        Where `mask`, bool `[B, N]`, is true, frames are replaced by `fill` `[width]`.
        """
        raise TypeError(f"{type(self).__name__} does not define contexts()")

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each layer computes, `[B, N, width]`."""
        return self.contexts(self.frames(sample), self.recorded_frames(sample))

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return features of frames, `[B, N, width]`; masked ones are replaced after the convolutions."""
        return self.contexts(self.frames(sample), self.recorded_frames(sample), mask, fill)[-1]

    def forward(self, sample: Tensor) -> Tensor:
        """Return the mean of a recording's frames, `[B, width]`."""
        return self.pool_sample(self.tokens(sample), sample)

    def pool_sample(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the mean over the frames within the recording."""
        recorded = self.recorded_frames(sample)[..., None]
        return (tokens * recorded).sum(dim=1) / recorded.sum(dim=1)

    def average(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the mean over the frames within the recording."""
        return self.pool_sample(tokens, sample)

    def without_padding(self, sample: Tensor) -> Tensor:
        """Return recordings without the zeros that follow all of them."""
        longest = max(int(recorded_samples(sample).amax()), self.convolutions.reach)
        return sample[:, :longest]


class WaveConvolutions(nn.Module):
    """Convolve a waveform `[B, T]` to frames `[B, N, channels]`, without padding.

    Each layer ends in a LayerNorm over channels (as in wav2vec 2.0's larger models, and in Rivière et al., 2020): a norm over
    time would tell frames about those after them, and make them depend on the length of the window. It takes off the level,
    too, but for what is much quieter than speech.
    """

    def __init__(self, channels: int, kernels: list[int], strides: list[int]) -> None:
        super().__init__()
        self.channels, self.hop, self.reach = channels, 1, 1
        for kernel, stride in zip(kernels, strides, strict=True):
            self.reach += (kernel - 1) * self.hop
            self.hop *= stride
        inner = [1, *[channels] * (len(kernels) - 1)]
        self.layers = nn.ModuleList(
            nn.Conv1d(before, channels, kernel, stride, bias=False)
            for before, kernel, stride in zip(inner, kernels, strides, strict=True)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in kernels)

    def count(self, samples: int) -> int:
        """Return the number of frames of so many samples; raises SslkitError if there is none."""
        return count_frames(samples, self.reach, self.hop)

    def forward(self, sound: Tensor) -> Tensor:
        """Return `[B, N, channels]`."""
        x = _GAIN * sound[:, None]
        for convolution, norm in zip(self.layers, self.norms, strict=True):
            x = nn.functional.gelu(norm(convolution(x).transpose(1, 2))).transpose(1, 2)
        return x.transpose(1, 2)


def recorded_samples(sound: Tensor) -> Tensor:
    """Return the number of samples before the zeros at the end of each recording, `[B]`."""
    place = torch.arange(1, sound.shape[1] + 1, device=sound.device)
    return (place * (sound != 0)).amax(dim=1)


def count_frames(samples: int, length: int, hop: int) -> int:
    """Return the number of whole frames of `length` samples, one every `hop`; raises SslkitError if there is none."""
    if samples < length:
        raise SslkitError(f"{samples} samples are no frame, which has {length}", "use more", flag="seconds")
    return 1 + (samples - length) // hop


def recorded_frames(sound: Tensor, length: int, hop: int) -> Tensor:
    """Return which frames of `length` samples, one every `hop`, lie within the recording, at least the first, bool `[B, N]`."""
    end = hop * torch.arange(count_frames(sound.shape[1], length, hop), device=sound.device) + length
    end[0] = 0
    return end <= recorded_samples(sound)[:, None]


def check_mono(encoder: str, in_channels: int) -> None:
    """Raise SslkitError for samples with more than one channel, which are no audio."""
    if in_channels != 1:
        raise SslkitError(
            f"{encoder} is an encoder of audio, which has one channel (got {in_channels})", "choose another", flag="encoder"
        )
