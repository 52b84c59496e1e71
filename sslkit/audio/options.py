"""Options of audio."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from sslkit.contract.modality import FileKind
from sslkit.contract.options import Auto, DataOptions
from sslkit.video.options import VIDEO_FILES

RECORDINGS = FileKind(
    "recordings",
    frozenset({".wav", ".flac", ".ogg", ".mp3"}) | VIDEO_FILES,
    "a folder of recordings (.wav, .flac, .ogg, .mp3, or videos with sound), a .txt list, a .csv with a `path` column, or "
    ".parquet",
    column="audio",
    grouped=True,
)
RATES = (1000, 192_000)  # Hz that a recording or an encoder may have
SHORTEST = 0.025  # seconds: one frame of the spectrogram

Seconds = Annotated[float, Field(ge=SHORTEST, le=60)]
Rate = Annotated[int, Field(ge=RATES[0], le=RATES[1])]


class AudioOptions(DataOptions):
    """Data options of recordings."""

    modality: ClassVar = "audio"
    noun: ClassVar = RECORDINGS.noun
    value_range: ClassVar = "[-1, 1]"
    accepts: ClassVar = RECORDINGS.accepts
    record: ClassVar = "sslkit.audio.modality:AudioModality"

    seconds: Seconds | Auto | Literal["recording"] = Field(
        default="auto",
        description="Length of a sample in seconds; auto: 0.96, or half of a shorter recording; recording: all, at most 2.",
    )
    sample_rate: Rate | Auto = Field(
        default="auto", description="Sample rate of the encoder's input in Hz; auto: the recordings' own, at most 16,000."
    )

    def sample_size(self) -> int | None:
        """Return the window in milliseconds, None for one that the data decides."""
        return None if isinstance(self.seconds, str) else round(1000 * self.seconds)

    @classmethod
    def of_size(cls, size: int) -> dict[str, Any]:
        """Return `seconds`."""
        return {"seconds": size / 1000}
