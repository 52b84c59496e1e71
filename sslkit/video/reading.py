"""Read frames of a clip from a folder of images or a video file."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.index import Index, open_file
from sslkit.extras import load_extra
from sslkit.image.decode import CanvasFormat, Decoded, decode, fit, open_image
from sslkit.image.formats import check_pixels
from sslkit.image.options import IMAGES

_FAR = 64  # frames between two that are wanted, from which on a video file is searched for the next


_BACK = 16  # frames before one that a search missed, where the next search begins


_TURNS = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}


def motion(window: NDArray[np.uint8]) -> float:
    """Return how much a window `[T, H, W, C]` moves: the mean difference of frames that follow each other, in gray values.

    In the place of the magnitude of optical flow, which takes longer than the step that is to come.
    """
    return float(np.abs(np.diff(window.astype(np.int16), axis=0)).mean())


@dataclass(frozen=True)
class Frames:
    """Some frames of a clip on their canvases."""

    canvases: NDArray[np.uint8]  # [T, side, side, 3]
    aspect: float  # width / height of the first
    per_second: float | None = None  # of the clip, where a file tells

    @classmethod
    def of(cls, frames: list[Decoded]) -> "Frames":
        """Return decoded frames."""
        return cls(np.stack([frame.canvas for frame in frames]), frames[0].aspect)


class FrameFolder:
    """Read frames that are images, in their order."""

    def __init__(self, files: list[Path]) -> None:
        self.files, self.length = files, len(files)
        if not files:
            raise UnreadableSampleError("no image in it")

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels."""
        with open_file(self.files[0]) as stream, open_image(stream) as image:
            return image.size

    def frames(self, numbers: NDArray[np.int64], form: CanvasFormat, position: float = 0.5) -> Frames:
        """Return some frames; each is decoded once."""
        known: dict[int, Decoded] = {}
        for number in map(int, numbers):
            if number not in known:
                with open_file(self.files[number]) as stream:
                    known[number] = decode(stream, form, position=position)
        return Frames.of([known[int(number)] for number in numbers])


class VideoFile:
    """Read frames of a video file; what lies before the first one wanted is skipped as far as keyframes allow."""

    def __init__(self, container: Any) -> None:
        if not container.streams.video:
            raise UnreadableSampleError("no video in it")
        self.container, self.video = container, container.streams.video[0]
        self.video.thread_count = 1  # other clips are decoded beside this one
        check_pixels(self.video.width, self.video.height)
        self.begin = self.video.start_time or 0
        if container.format.name == "avi" and self.video.codec_context.has_b_frames:
            # AVI has no times of display: what FFmpeg makes of those of decoding begins later where frames are reordered.
            self.begin = next((frame.pts for frame in container.decode(self.video)), self.begin)
        second = float(self.video.time_base or 1)  # of a tick
        self.per_second = float(self.video.average_rate or self.video.guessed_rate or 0)
        self.rate = self.per_second * second
        self.start = self.begin * second  # seconds of the container's clock
        seconds = float((container.duration or 0) / 1e6)
        self.length = int(self.video.frames or seconds * self.per_second)
        if self.length < 1 or not self.rate:
            raise UnreadableSampleError("a video of unknown length")

    @property
    def size(self) -> tuple[int, int]:
        """Return width and height in pixels, as the video is displayed."""
        self.container.seek(self.video.start_time or 0, stream=self.video)
        for frame in self.container.decode(self.video):
            return upright(frame).size
        raise UnreadableSampleError("the first frame cannot be decoded")

    def frames(self, numbers: NDArray[np.int64], form: CanvasFormat, position: float = 0.5) -> Frames:
        """Return some frames, in rising order; the last in place of what is not there.

        A container may say that it is longer: with sound that goes on after the picture.
        """
        frames: list[Decoded] = []
        near = np.split(numbers, np.flatnonzero(np.diff(numbers) > _FAR) + 1)  # what is far is sought, not decoded on the way
        for group in near:
            remaining, last = list(map(int, group)), None
            for frame in self._decode_from(remaining[0]):
                number, last = self._number(frame), frame
                if number < remaining[0]:
                    continue
                fitted = fit(upright(frame), form, position)
                while remaining and remaining[0] <= number:
                    frames.append(fitted)
                    remaining.pop(0)
                if not remaining:
                    break
            if last is None:
                raise UnreadableSampleError("the frames that were wanted cannot be decoded")
            if remaining:
                frames += [fit(upright(last), form, position)] * len(remaining)
        return replace(Frames.of(frames), per_second=self.per_second)

    def _number(self, frame: Any) -> int:
        number: int = round((frame.pts - self.begin) * self.rate)
        return number

    def _decode_from(self, number: int) -> Iterator[Any]:
        """Decode from the last keyframe that is not after a frame.

        A search by times of decoding may end behind it: then it begins again earlier.
        """
        back = 0
        while True:
            start = max(0, number - back)
            self.container.seek(int(start / self.rate) + (self.begin if start else 0), stream=self.video)
            frames = self.container.decode(self.video)
            first = next(frames, None)
            if first is not None and (start == 0 or self._number(first) <= number):
                return chain([first], frames)
            if start == 0:
                return iter(())
            back = 2 * back or _BACK


def upright(frame: Any) -> Image.Image:
    """Return a frame as it is displayed: phones note in a video how they were held."""
    image: Image.Image = frame.to_image()
    turn = _TURNS.get(int(frame.rotation) % 360)
    return image if turn is None else image.transpose(turn)


@contextmanager
def open_clip(index: Index, row: int) -> Iterator[FrameFolder | VideoFile]:
    """Open a clip: a folder of frames, 2 before 10, a video file, or a single image."""
    path = index.root / index.paths[row]
    if path.is_dir():
        yield FrameFolder([path / name for name in frame_names(path)])
    elif path.suffix.lower() in IMAGES.extensions:
        yield FrameFolder([path])
    else:
        with index.open(row) as stream, _av().open(stream) as container:
            yield VideoFile(container)


def frame_names(folder: Path) -> list[str]:
    """Return the names of the frames in a folder, in their order."""
    names = (name for name in os.listdir(folder) if os.path.splitext(name)[1].lower() in IMAGES.extensions)
    return sorted((name for name in names if not name.startswith(".")), key=_in_numbers)


def _in_numbers(name: str) -> list[tuple[int, str]]:
    """Return a key by which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]


def _av() -> Any:
    return load_extra("av", "video", "reading video files")
