"""Data options of recordings that are read as images."""

from typing import ClassVar

from pydantic import Field

from sslkit.audio.options import RECORDINGS, Rate
from sslkit.contract.options import DataOptions


class SpectrogramOptions(DataOptions):
    """Data options of spectrograms; `--size` of images is the number of bands, and of columns of 10 ms."""

    modality: ClassVar = "spectrogram"
    noun: ClassVar = RECORDINGS.noun
    size_unit: ClassVar = "px"
    value_range: ClassVar = "[0, 1]"
    accepts: ClassVar = RECORDINGS.accepts
    parts: ClassVar = ("image",)
    kept: ClassVar = ("spectrogram_rate",)
    record: ClassVar = "sslkit.audio.spectrogram_images:SpectrogramModality"

    spectrogram_rate: Rate = Field(default=16_000, description="Sample rate in Hz to which recordings are brought before.")
