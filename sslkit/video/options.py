"""Options of video."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from sslkit.contract.modality import FileKind
from sslkit.contract.options import Auto, DataOptions
from sslkit.image.options import IMAGES

VIDEO_FILES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


CLIPS = FileKind(
    "clips",
    VIDEO_FILES | IMAGES.extensions,
    "a folder of clips, each a folder of frames or a video file, a .txt list, or a .csv with a `path` column",
    grouped=True,
)
FEWEST = 2  # frames of a window

Frames = Annotated[int, Field(ge=FEWEST, le=256)]
Step = Annotated[int, Field(ge=1, le=64)]


class VideoOptions(DataOptions):
    """Data options of clips; those of images hold for their frames."""

    modality: ClassVar = "video"
    noun: ClassVar = CLIPS.noun
    size_unit: ClassVar = "px"
    value_range: ClassVar = "[0, 1]"
    accepts: ClassVar = CLIPS.accepts
    parts: ClassVar = ("image",)
    record: ClassVar = "sslkit.video.modality:VideoModality"

    frames: Frames | Auto = Field(default="auto", description="Frames of a training window; auto: 16, or what most clips have.")
    poses: str | None = Field(
        default=None,
        description="File in each clip's folder, such as poses.csv, with numbers for each frame: where the camera is.",
    )
    cameras: Literal["first", "all"] = Field(
        default="first",
        description="Videos of a table's row that are read; first: column path; all: also path2, path3 ..., of the same time.",
    )
    frame_step: Step | Auto = Field(
        default="auto", description="Largest distance between frames of a window; auto: 6, less in short clips."
    )
