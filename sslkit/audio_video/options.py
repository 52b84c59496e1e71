"""Data options of videos with sound."""

from typing import ClassVar

from sslkit.contract.modality import FileKind
from sslkit.contract.options import DataOptions
from sslkit.video.options import VIDEO_FILES

VIDEOS = FileKind(
    "videos",
    VIDEO_FILES,
    "a folder of video files with sound, a .txt list, or a .csv with a `path` column",
    grouped=True,
)


class AudioVideoOptions(DataOptions):
    """Videos with sound have the options of frames and of recordings."""

    modality: ClassVar = "audio_video"
    noun: ClassVar = VIDEOS.noun
    size_unit: ClassVar = "px"
    value_range: ClassVar = "[0, 1]"
    accepts: ClassVar = VIDEOS.accepts
    parts: ClassVar = ("image", "audio")
    record: ClassVar = "sslkit.audio_video.modality:AudioVideoModality"
