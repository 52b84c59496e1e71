"""A small encoder of frames that knows only what came before (van den Oord et al., 2018; Rivière et al., 2020)."""

import math

import torch
from torch import Tensor, nn

from sslkit.audio.encoders.base import FrameEncoder, WaveConvolutions, check_mono
from sslkit.audio.spectrogram import check_rate
from sslkit.contract.errors import SslkitError


def cpc_micro(in_channels: int = 1, size: int = 960, sample_rate: int = 16000, width: int = 128) -> "CausalEncoder":
    """Convolutions on the waveform, a frame every 10 ms, and a GRU of width 128: knows only what came before."""
    check_mono("cpc_micro", in_channels)
    if width < 8:
        raise SslkitError(f"width of cpc_micro should be 8 or more (got {width})", flag="encoder_option")
    return CausalEncoder(check_rate(sample_rate), width)


class CausalEncoder(FrameEncoder):
    """Summarize the frames up to each by a GRU; `layers` are the frames and the summaries."""

    provides = ("pooled", "tokens", "layers", "frames", "causal")

    def __init__(self, sample_rate: int, width: int) -> None:
        # The paper's strides, 5, 4 and three times 2, are a frame every 10 ms at 16 kHz; other rates have more or fewer.
        halvings = max(0, round(math.log2(sample_rate * 0.010 / 20)))
        super().__init__(width, sample_rate, WaveConvolutions(width, [10, 8, *[4] * halvings], [5, 4, *[2] * halvings]))
        self.recurrent = nn.GRU(width, width, batch_first=True)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the convolutions and of the GRU."""
        return [list(self.convolutions.parameters()), list(self.recurrent.parameters())]

    def contexts(
        self, frames: Tensor, recorded: Tensor, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> list[Tensor]:
        """Return the frames and their summaries."""
        if mask is not None:
            assert fill is not None
            frames = torch.where(mask[..., None], fill.to(frames.dtype), frames)
        return [frames, self.recurrent(frames)[0]]
