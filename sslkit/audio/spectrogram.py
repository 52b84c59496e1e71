"""Log-mel spectrograms."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.audio.options import RATES
from sslkit.contract.errors import SslkitError

_WINDOW, _HOP = 0.025, 0.010  # seconds


_LOWEST, _HIGHEST = 60.0, 7800.0  # Hz


_BANDS, _COEFFICIENTS = 40, 13  # of MFCC


def check_rate(rate: int | str) -> int:
    """Return a sample rate in Hz; raises SslkitError, naming the flag, for one that can't be used."""
    text = str(rate)
    if not text.isdigit() or not RATES[0] <= int(text) <= RATES[1]:
        raise SslkitError(f"sample_rate should be {RATES[0]} to {RATES[1]} Hz (got {rate})", flag="encoder_option")
    return int(text)


class LogMel(nn.Module):
    """Turn sound `[B, T]` into log-mel spectrograms `[B, mels, frames]`: windows of 25 ms, every 10 ms, as COLA has them.

    Magnitudes are squared, bands are Slaney's (triangles on a scale linear up to 1 kHz, of equal area), 60 to 7,800 Hz or
    nine tenths of half the sample rate, as far as that goes; the ends are padded with silence (Saeed et al., 2021, section 3).
    """

    cosines: Tensor
    sines: Tensor
    bands: Tensor

    def __init__(self, sample_rate: int, mels: int, length: int = 0, hop: int = 0, padded: bool = True) -> None:
        """Build it with windows of other `length` and `hop` in samples, and without padding, if that is wanted."""
        super().__init__()
        self.length, self.hop = length or round(_WINDOW * sample_rate), hop or round(_HOP * sample_rate)
        self.padding = self.length // 2 if padded else 0
        time = torch.arange(self.length, dtype=torch.float64)
        window = 0.5 - 0.5 * torch.cos(2 * math.pi * time / self.length)
        angle = 2 * math.pi * time[:, None] * torch.arange(self.length // 2 + 1) / self.length
        bands = mel_bands(sample_rate, self.length, mels, _LOWEST, min(_HIGHEST, 0.45 * sample_rate))
        # Not saved: they follow from the recipe.
        self.register_buffer("cosines", (window[:, None] * torch.cos(angle)).float(), persistent=False)
        self.register_buffer("sines", (window[:, None] * torch.sin(angle)).float(), persistent=False)
        self.register_buffer("bands", bands.float(), persistent=False)

    def forward(self, sound: Tensor) -> Tensor:
        """Return the natural logarithm of each band's energy plus 1e-5, `[B, mels, 1 + T // hop]`."""
        with torch.autocast(sound.device.type, enabled=False):  # half precision would drown what is quiet
            padded = F.pad(sound.to(self.bands.dtype), (self.padding, self.padding))
            frames = padded.unfold(1, self.length, self.hop)  # [B, frames, length]
            energy = (frames @ self.cosines).square() + (frames @ self.sines).square()
            return (energy @ self.bands + 1e-5).log().transpose(1, 2)


class MFCC(nn.Module):
    """Describe frames of sound `[B, T]` by 13 mel-frequency cepstral coefficients and two derivatives of each, `[B, N, 39]`.

    The cosine transform of 40 log-mel bands; derivatives by regression over two frames to each side (Furui, 1986). Frame n has
    the samples from `n * hop` on, `length` of them.
    """

    cosines: Tensor

    def __init__(self, sample_rate: int, length: int, hop: int) -> None:
        super().__init__()
        self.spectrogram = LogMel(sample_rate, _BANDS, length, hop, padded=False)
        place = torch.arange(_BANDS, dtype=torch.float64)
        cosines = torch.cos(math.pi * (place[:, None] + 0.5) * torch.arange(_COEFFICIENTS) / _BANDS) * math.sqrt(2 / _BANDS)
        cosines[:, 0] /= math.sqrt(2)  # an orthonormal transform
        self.register_buffer("cosines", cosines.float(), persistent=False)

    def forward(self, sound: Tensor, recorded: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values `[B, N, 39]` without their mean over `recorded` frames, bool `[B, N]`, and that mean `[B, 39]`.

        Level and channel are no content. Where nothing is recorded values are 0.
        """
        coefficients = self.spectrogram(sound).transpose(1, 2) @ self.cosines
        # What follows a recording is no sound: its last frame goes on, for the derivatives.
        last = recorded.sum(dim=1, keepdim=True) - 1
        place = torch.minimum(torch.arange(coefficients.shape[1], device=sound.device), last)
        place = place[..., None].expand_as(coefficients)
        first = _derivative(coefficients.gather(1, place))
        values = torch.cat([coefficients, first, _derivative(first.gather(1, place))], dim=2)
        weight = recorded[..., None].to(values.dtype)
        mean = (values * weight).sum(dim=1, keepdim=True) / weight.sum(dim=1, keepdim=True)
        return (values - mean) * weight, mean[:, 0]


def _derivative(values: Tensor) -> Tensor:
    """Return the slope over five frames of values `[B, N, D]`; the first and last go on beyond the ends."""
    ends = torch.cat([values[:, :1], values[:, :1], values, values[:, -1:], values[:, -1:]], dim=1)
    slope: Tensor = (ends[:, 3:-1] - ends[:, 1:-3] + 2 * (ends[:, 4:] - ends[:, :-4])) / 10
    return slope


def mel_bands(sample_rate: int, length: int, mels: int, lowest: float, highest: float) -> Tensor:
    """Return the weights `[length // 2 + 1, mels]`, float64, of a spectrum's frequencies in each band.

    Triangles whose corners are evenly spaced on the mel scale of Slaney's Auditory Toolbox (1998), divided by their width.
    """
    corners = _hertz(torch.linspace(_mel(lowest), _mel(highest), mels + 2, dtype=torch.float64))
    frequencies = torch.arange(length // 2 + 1, dtype=torch.float64)[:, None] * sample_rate / length
    rising = (frequencies - corners[:-2]) / (corners[1:-1] - corners[:-2])
    falling = (corners[2:] - frequencies) / (corners[2:] - corners[1:-1])
    return torch.minimum(rising, falling).clamp(min=0) * 2 / (corners[2:] - corners[:-2])


# Linear below 1 kHz, 200/3 Hz for each mel; logarithmic above, 27 mels for each factor of 6.4.
def _mel(hertz: float) -> float:
    return 3 * hertz / 200 if hertz < 1000 else 15 + 27 * math.log(hertz / 1000) / math.log(6.4)


def _hertz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, 200 * mel / 3, 1000 * torch.exp((mel - 15) * math.log(6.4) / 27))
