"""Encoders of images on spectrograms: `spectrogram:vit_micro`."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit.audio.encoders.base import AudioEncoder, check_mono, recorded_samples
from sslkit.audio.spectrogram import LogMel, check_rate
from sslkit.contract.encoder import Encoder, EncoderLibrary
from sslkit.contract.errors import SslkitError
from sslkit.encoders.build import build_encoder, encoder_origin
from sslkit.encoders.recipe import recipe_for
from sslkit.image.encoders.base import PatchEncoder
from sslkit.nn.norms import in_eval_mode

_QUIETEST, _LOUDEST = -11.5, 5.0  # of log-mel bands: nothing, and most of what is recorded


def scale_bands(bands: Tensor) -> Tensor:
    """Return log-mel bands as brightness: 0 for nothing, 1 for most of what is recorded."""
    return (bands - _QUIETEST) / (_LOUDEST - _QUIETEST)


class SpectrogramLibrary(EncoderLibrary):
    """Put log-mel spectrograms before any encoder of images with one channel."""

    modality: ClassVar = "audio"

    def names(self) -> list[str]:
        """Return the names of two encoders of images; others that take images of any size may be named, too."""
        return ["vit_micro", "resnet_micro"]

    def build(
        self, name: str, in_channels: int, size: int, stem: str = "standard", pretrained: bool = False, **options: Any
    ) -> Encoder:
        """Build an encoder of images that takes spectrograms; `sample_rate` and `mels` are options of these."""
        check_mono(f"spectrogram:{name}", in_channels)
        rate, mels = check_rate(options.pop("sample_rate", 16_000)), int(options.pop("mels", 64))
        inner_options = {option: str(value) for option, value in options.items()}
        inner = build_encoder({**recipe_for(name, mels, 1, inner_options, pretrained), "stem": stem}, pretrained)
        if inner.modality != "image":
            raise SslkitError(f"{name} is an encoder of {inner.modality} data", "name one of images", flag="encoder")
        if not 8 <= mels <= 256 or mels % inner.size_step:
            problem = f"mels should be 8 to 256, and a multiple of {inner.size_step} (got {mels})"
            raise SslkitError(problem, flag="encoder_option")
        encoder = SpectrogramEncoder(inner, rate, mels)
        if encoder.device.type != "meta":  # some take images of one size only
            with torch.no_grad(), in_eval_mode(encoder):
                encoder(torch.zeros(2, rate // 4))
        return encoder

    def version(self) -> str:
        """Return the distribution that this comes from."""
        return encoder_origin("vit_micro")


class SpectrogramEncoder(AudioEncoder):
    """Show the log-mel spectrogram of sound `[B, T]` to an encoder of images; patches are of a few bands and frames.

    Of the zeros that follow a recording shorter than its window, no patches are pooled; encoders without patches pool as they
    do with images.
    """

    def __init__(self, image: Encoder, sample_rate: int, mels: int) -> None:
        super().__init__(image.width, in_channels=1)
        self.image, self.sample_rate = image, sample_rate
        self.spectrogram = LogMel(sample_rate, mels)
        patches = ("spectrogram_patches",) if isinstance(image, PatchEncoder) else ()
        self.provides = (*image.provides, *patches)
        self.class_token = image.class_token

    @property
    def prefix(self) -> int:
        """Return how many tokens stand before those of patches."""
        return self.image.prefix

    @property
    def patch(self) -> int:
        """Return the side of a patch, in bands and in frames of 10 ms."""
        return self.image.size_step

    def stages(self) -> list[list[nn.Parameter]]:
        """Return the parameters in the order of depth."""
        return self.image.stages()

    def checkpoint_activations(self) -> bool:
        """Let the encoder of images compute its blocks again, where it can."""
        return self.image.checkpoint_activations()

    def picture(self, sample: Tensor) -> Tensor:
        """Return spectrograms as images, `[B, 1, bands, frames]`, low bands first, 0 for silence; whole patches."""
        bands = scale_bands(self.spectrogram(sample))
        return F.pad(bands, (0, -bands.shape[2] % self.patch))[:, None]

    def grid(self, samples: int) -> tuple[int, int]:
        """Return rows and columns of patches for so many samples."""
        return self.spectrogram.bands.shape[1] // self.patch, -(-(1 + samples // self.spectrogram.hop) // self.patch)

    def recorded_patches(self, sample: Tensor) -> Tensor:
        """Return which patches begin within the recording, at least those of the first column, bool `[B, N]`."""
        rows, columns = self.grid(sample.shape[1])
        starts = self.patch * self.spectrogram.hop * torch.arange(columns, device=sample.device)
        recorded = starts < recorded_samples(sample).clamp(min=1)[:, None]
        return recorded[:, None].expand(-1, rows, -1).flatten(1)

    def tokens(
        self, sample: Tensor, keep: Tensor | None = None, mask: Tensor | None = None, fill: Tensor | None = None
    ) -> Tensor:
        """Return features of patches, `[B, prefix + N, width]`; see `Encoder`."""
        return self.image.tokens(self.picture(sample), keep, mask, fill)

    def layers(self, sample: Tensor) -> list[Tensor]:
        """Return what each stage computes."""
        return self.image.layers(self.picture(sample))

    def feature_map(self, image: Tensor) -> Tensor:
        """Return the last feature map of sound, `[B, width, h, w]`."""
        return self.image.feature_map(self.picture(image))

    def forward(self, sample: Tensor) -> Tensor:
        """Return features `[B, width]`: of patches, the mean over those within the recording."""
        if "spectrogram_patches" in self.provides:
            return self.pool_sample(self.tokens(sample), sample)
        features: Tensor = self.image(self.picture(sample))
        return features

    def pool_sample(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the mean over patches within the recording."""
        recorded = self.recorded_patches(sample)[..., None]
        return (tokens[:, self.prefix :] * recorded).sum(dim=1) / recorded.sum(dim=1)

    def average(self, tokens: Tensor, sample: Tensor) -> Tensor:
        """Return the mean over patches within the recording."""
        return self.pool_sample(tokens, sample)
