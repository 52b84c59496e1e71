"""Options of video."""

from sslkit.contract.modality import FileKind
from sslkit.image.options import IMAGES

_FILES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg"})


CLIPS = FileKind(
    "clips",
    _FILES | IMAGES.extensions,
    "a folder of clips, each a folder of frames or a video file, a .txt list, or a .csv with a `path` column",
)
