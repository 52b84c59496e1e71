"""Recordings as images: windows of log-mel spectrograms, for tasks and encoders of images."""

from functools import cache
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.audio.encoders.spectrogram import scale_bands
from sslkit.audio.source import AudioSource, refuse_cache
from sslkit.audio.spectrogram import LogMel
from sslkit.audio.spectrogram_options import SpectrogramOptions
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import InputGuide
from sslkit.contract.source import OpenSpec, Source
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.index import Index
from sslkit.image.modality import ImageModality
from sslkit.image.options import ImageOptions

_SIZE = 64  # bands, and columns of 10 ms
_NOT_OF_SOUND = ("canvas", "layout", "channels", "range", "targets")


class SpectrogramSource(AudioSource):
    """Recordings; a batch has `canvas`, float32 `[B, 1, size, size]` in [0, 1], as for images, and `aspect`, which is 1.

    A canvas has as many mel bands, the highest first, as columns of 10 ms. In training it is a random window of a recording; in
    evaluations features are averaged over eight, from beginning to end.
    """

    training_windows: ClassVar = 1

    def __init__(self, index: Index, size: int, sample_rate: int, resolved: dict[str, tuple[Any, str]]) -> None:
        super().__init__(index, 1, sample_rate, resolved)
        self.samples = (size - 1) * round(0.010 * sample_rate)  # the ends are padded: one column more than there are steps
        self.info = DataInfo(len(index), size, 1, "spectrogram", {"sample_rate": sample_rate})

    @classmethod
    def list_samples(cls, location: str, spec: OpenSpec) -> Index:
        """Index one part of the data."""
        options = spec.table(ImageOptions)
        for name in _NOT_OF_SOUND:
            if getattr(options, name) != ImageOptions.model_fields[name].default:
                raise SslkitError("spectrograms are made of sound", "leave it out", flag=name)
        return super().list_samples(location, spec)

    @classmethod
    def for_training(cls, index: Index, spec: OpenSpec) -> Self:
        """Return recordings as spectrograms of the size that was asked for."""
        resolved: dict[str, tuple[Any, str]] = {"cache": refuse_cache(spec)}
        size = spec.table(ImageOptions).size
        if size == "auto":
            size = _SIZE
            resolved |= {"size": (size, f"mel bands, and columns of 10 ms: windows of {10 * size} ms")}
        return cls(index, int(size), spec.table(SpectrogramOptions).spectrogram_rate, resolved)

    @classmethod
    def for_evaluation(cls, index: Index, spec: OpenSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return recordings as spectrograms of a size."""
        return cls(index, size, spec.table(SpectrogramOptions).spectrogram_rate, {})

    @classmethod
    def channels(cls, index: Index) -> int | None:
        """Return 1."""
        return 1

    def key(self) -> str:
        """Return the data's own key, the rate and the size."""
        return f"{super().key()} spectrograms {self.info.size}"

    def prepare(self, batch: Batch) -> Batch:
        """Return `canvas`, the spectrogram of the first window, `aspect`, and all `windows`, `[B, V, 1, size, size]`."""
        sound = batch["audio"]
        windows = draw_canvases(sound.flatten(0, 1), self.rate, self.info.size).unflatten(0, sound.shape[:2])
        others = {name: value for name, value in batch.items() if name not in ("audio", "length")}
        return {
            "canvas": windows[:, 0].contiguous(),
            "aspect": sound.new_ones(len(sound)),
            "windows": windows,
            **others,
        }

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the spectrograms of all windows, `[B, V, 1, size, size]`."""
        windows: Tensor = batch["windows"]
        return windows

    def encoder_options(self, encodes: str) -> dict[str, Any]:
        """Return nothing: encoders of images know no sample rate."""
        return {}


class SpectrogramModality(ImageModality):
    """Spectrograms of recordings `[B, 1, size, size]`, floats in [0, 1], in the place of images."""

    options: ClassVar = SpectrogramOptions
    source: ClassVar = SpectrogramSource
    encodes: ClassVar = ("image",)
    stands_for: ClassVar = "image"
    encoder_channels: ClassVar = 1

    def thumbnail(self, source: Source, row: int) -> Image.Image | None:
        """Return the spectrogram of the first window."""
        assert isinstance(source, SpectrogramSource)
        arrays, broken = source.read(np.array([row]))
        if broken:
            return None
        canvas = draw_canvases(torch.from_numpy(arrays["audio"][:, 0]), source.rate, source.info.size)
        return Image.fromarray((255 * canvas[0, 0]).byte().numpy())

    def input_guide(self, encoder: Encoder, size: int, options: Any, sample_details: Any) -> InputGuide | None:
        """Return None: how a recording becomes a picture is not described in exports."""
        return None


def draw_canvases(sound: Tensor, sample_rate: int, size: int) -> Tensor:
    """Return windows of sound `[N, samples]` as images `[N, 1, size, size]` in [0, 1], black for silence, high bands on top."""
    bands = _log_mel(sample_rate, size, sound.device)(sound)[..., :size]
    canvas: Tensor = scale_bands(bands).clamp(0, 1).flip(1)
    return canvas[:, None]


@cache
def _log_mel(sample_rate: int, bands: int, device: torch.device) -> LogMel:
    return LogMel(sample_rate, bands).to(device)
