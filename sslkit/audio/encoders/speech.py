"""A small transformer on frames of sound, as wav2vec 2.0 and HuBERT have it (Baevski et al., 2020; Hsu et al., 2021)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.audio.encoders.base import FrameEncoder, WaveConvolutions, check_mono
from sslkit.audio.spectrogram import check_rate
from sslkit.contract.errors import SslkitError
from sslkit.nn.transformer import Block

_GROUPS, _KERNEL = 8, 31  # of the convolution that tells positions, 0.6 s wide (16 and 128 in the paper)


_BUCKETS, _FARTHEST = 32, 128  # of distances (320 and 800 in the paper)


def speech_micro(
    in_channels: int = 1, size: int = 960, sample_rate: int = 16000, width: int = 128, depth: int = 4, channels: int = 64
) -> "SpeechEncoder":
    """Convolutions on the waveform, a frame every 20 ms, and a transformer of width 128, depth 4: for speech."""
    _check("speech_micro", in_channels, width, depth, channels)
    return SpeechEncoder(check_rate(sample_rate), width, depth, channels)


def wavlm_micro(
    in_channels: int = 1, size: int = 960, sample_rate: int = 16000, width: int = 128, depth: int = 4, channels: int = 64
) -> "RelativeSpeechEncoder":
    """`speech_micro` whose attention also knows the distances of frames, by a bias that each frame gates."""
    _check("wavlm_micro", in_channels, width, depth, channels)
    return RelativeSpeechEncoder(check_rate(sample_rate), width, depth, channels)


def _check(encoder: str, in_channels: int, width: int, depth: int, channels: int) -> None:
    check_mono(encoder, in_channels)
    if width < 32 or width % 32:
        raise SslkitError(f"width of {encoder} should be a multiple of 32 (got {width})", flag="encoder_option")
    for name, value, most in (("depth", depth, 64), ("channels", channels, 2048)):
        if not 1 <= value <= most:
            raise SslkitError(f"{name} should be 1 to {most} (got {value})", flag="encoder_option")


class SpeechEncoder(FrameEncoder):
    """Let frames attend to each other; a grouped convolution over them tells their positions (Baevski et al., 2020).

    `layers` begin with the projected frames, before the first block.
    """

    def __init__(self, sample_rate: int, width: int, depth: int, channels: int) -> None:
        # The paper's strides, 5 and six times 2, are a frame every 20 ms at 16 kHz; at other rates there are more or fewer.
        halvings = max(1, round(math.log2(sample_rate * 0.020 / 5)))
        kernels = [10, *[3] * min(4, halvings), *[2] * max(0, halvings - 4)]
        super().__init__(width, sample_rate, WaveConvolutions(channels, kernels, [5, *[2] * halvings]))
        self.norm, self.project = nn.LayerNorm(channels), nn.Linear(channels, width)
        self.positions = nn.Conv1d(width, width, _KERNEL, padding=_KERNEL // 2, groups=_GROUPS)
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(depth))
        self.last_norm = nn.LayerNorm(width)

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the convolutions and of each block."""
        first = (self.convolutions, self.norm, self.project, self.positions)
        stem = [parameter for module in first for parameter in module.parameters()]
        blocks = [list(block.parameters()) for block in self.blocks]
        return [stem, *blocks[:-1], [*blocks[-1], *self.last_norm.parameters()]]

    def contexts(
        self, frames: Tensor, recorded: Tensor, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> list[Tensor]:
        """Return the projected frames, and what each block makes of them; the last after its LayerNorm."""
        x = self.project(self.norm(frames))
        if mask is not None:
            assert fill is not None
            x = torch.where(mask[..., None], fill.to(x.dtype), x)
        x = x * recorded[..., None]
        outputs = [x]
        x = x + F.gelu(self.positions(x.transpose(1, 2)).transpose(1, 2))
        for number, block in enumerate(self.blocks):
            x = block(x, visible=recorded, bias=self.bias(x, number))
            outputs.append(x)
        return [*outputs[:-1], self.last_norm(outputs[-1])]

    def bias(self, x: Tensor, block: int) -> Tensor | None:
        """Return what is added to the scores of attention among `x` `[B, N, width]` in a block, `[B, heads, N, N]`, or None."""
        return None


class RelativeSpeechEncoder(SpeechEncoder):
    """Add a bias for the distance of frames to the scores of attention, times a gate of each query (Chen et al., 2022).

    The bias of a bucket of distances is the same in all blocks; the gates are sigmoids of a linear layer (equations 5 to 8).
    """

    provides = (*SpeechEncoder.provides, "relative")

    def __init__(self, sample_rate: int, width: int, depth: int, channels: int) -> None:
        super().__init__(sample_rate, width, depth, channels)
        heads = width // 32
        self.distance = nn.Embedding(_BUCKETS, heads)
        nn.init.normal_(self.distance.weight, std=0.02)
        self.gates = nn.ModuleList(nn.Linear(32, 2) for _ in range(depth))
        self.strength = nn.Parameter(torch.ones(depth, heads, 1))

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of the convolutions and of each block; those of the bias belong to the first."""
        first, *rest = super().stages()
        return [[*first, *self.distance.parameters(), *self.gates.parameters(), self.strength], *rest]

    def bias(self, x: Tensor, block: int) -> Tensor:
        """Return `[B, heads, N, N]`."""
        place = torch.arange(x.shape[1], device=x.device)
        bias = self.distance(distance_bucket(place[None] - place[:, None])).permute(2, 0, 1)  # [heads, N, N]
        query = x.unflatten(2, (-1, 32)).transpose(1, 2)  # a part of the input for each head
        update, reset = self.gates[block](query).sigmoid().unbind(3)  # [B, heads, N]
        gate = update * (self.strength[block] * reset - 1) + 2
        result: Tensor = gate[..., None] * bias
        return result


def distance_bucket(distance: Tensor) -> Tensor:
    """Return the bucket of distances `key - query`: half of them for each sign, small ones singly, large ones by logarithm.

    (Raffel et al., 2020, section 2.1.)
    """
    half, single = _BUCKETS // 2, _BUCKETS // 4
    size = distance.abs()
    grown = single + (size.clamp(min=1) / single).log() / math.log(_FARTHEST / single) * (half - single)
    return half * (distance > 0) + torch.where(size < single, size, grown.long().clamp(max=half - 1))
