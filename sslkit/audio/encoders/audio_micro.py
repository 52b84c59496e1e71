"""A small convolutional network on log-mel spectrograms."""

from torch import Tensor, nn

from sslkit.audio.encoders.base import AudioEncoder, check_mono
from sslkit.audio.spectrogram import LogMel, check_rate
from sslkit.contract.errors import SslkitError
from sslkit.image.encoders.resnet_micro import ResNetMicro

_GROUPS = 8


def audio_micro(
    in_channels: int = 1, size: int = 960, sample_rate: int = 16000, width: int = 16, mels: int = 64
) -> "AudioMicro":
    """Log-mel spectrogram (64 bands) and four residual blocks, widths 16-32-64-128 (`width=16`): trains on a laptop CPU."""
    check_mono("audio_micro", in_channels)
    if width < _GROUPS or width % _GROUPS:
        raise SslkitError(f"width of audio_micro should be a multiple of {_GROUPS} (got {width})", flag="encoder_option")
    check_rate(sample_rate)
    if not 8 <= mels <= 256:
        raise SslkitError(f"mels should be 8 to 256 (got {mels})", flag="encoder_option")
    return AudioMicro(sample_rate, width, mels)


class AudioMicro(AudioEncoder):
    """Stack four basic blocks with GroupNorm on a log-mel spectrogram; sound is `[B, T]`, floats in [-1, 1], any length."""

    provides = ("pooled", "layers")

    def __init__(self, sample_rate: int, width: int, mels: int) -> None:
        super().__init__(8 * width, in_channels=1)
        self.sample_rate = sample_rate
        self.spectrogram = LogMel(sample_rate, mels)
        # Speech and most sounds lie between -10 and 5.
        self.network = ResNetMicro(1, width, stride=2, norm=_norm, normalization=((-5.0,), (5.0,)))

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters of stem and blocks."""
        return self.network.stages()

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return the outputs of the four blocks, `[B, w, bands, frames]` each."""
        return self.network.layers(self.spectrogram(sample)[:, None])

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`: the largest values over bands and time, as in the paper."""
        return self.layers(sample)[-1].amax(dim=(2, 3))


def _norm(width: int) -> nn.Module:
    return nn.GroupNorm(_GROUPS, width)
