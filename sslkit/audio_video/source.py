"""Videos with sound as a source: frames, and windows of the sound around them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.audio.reading import SoundTrack, is_silent, last_start, load_av, read_window
from sslkit.audio.source import TRIES, choose_window
from sslkit.audio_video.options import VIDEOS
from sslkit.audio_video.writing import write_video
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.decode import decoding, silence_decoders
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.process_share import available_cores
from sslkit.image.decode import CanvasFormat
from sslkit.image.transforms import center_view
from sslkit.video.clip_cache import decoder_versions
from sslkit.video.reading import Frames, VideoFile
from sslkit.video.source import choose_frame_size, inspect_clips, refuse_pixel_options

_MOMENTS = 2  # of a video, in each of its samples


@dataclass(frozen=True)
class _Moments:
    """Two moments of a video: their frames, and the sound around them, `[2, samples]`."""

    frames: Frames
    sound: NDArray[np.float32]
    apart: bool  # whether the windows do not overlap


class AudioVideoSource(IndexedSource):
    """Videos; a batch has two moments of each: `video` `[B, 2, C, side, side]` in [0, 1], and `audio` `[B, 2, samples]`.

    Each frame is that in the middle of its window of sound, in [-1, 1]. `apart`, bool `[B]`, tells where the two windows do not
    overlap, which they do in short videos only; `aspect`, float32 `[B]`, is as for images. Moments are random in training,
    else the beginning and the end. `info.details` has `sample_rate` in Hz and `window` in milliseconds.
    """

    kind: ClassVar = VIDEOS
    noun: ClassVar = VIDEOS.noun

    def __init__(
        self, index: Index, size: int, form: CanvasFormat, window: int, sample_rate: int, resolved: dict[str, tuple[Any, str]]
    ) -> None:
        self.index, self.resolved, self.location = index, resolved, index.source
        self.form, self.rate, self.samples = form, sample_rate, max(1, round(window * sample_rate / 1000))
        details = {"sample_rate": sample_rate, "window": window}
        self.info = DataInfo(len(index), size, 3, "audio_video", details)

    @classmethod
    def list_samples(cls, location: str, spec: OpenSpec) -> Index:
        """Index one part of the data."""
        refuse_pixel_options(spec)
        return super().list_samples(location, spec)

    @classmethod
    def for_training(cls, index: Index, spec: OpenSpec) -> Self:
        """Return videos whose frames and windows of sound are as asked for, or suit the data."""
        if spec.cache in ("on", "compact"):
            problem = "videos with sound are not cached"
            raise SslkitError(problem, "leave it out: moments are decoded when needed", flag="cache")
        resolved: dict[str, tuple[Any, str]] = {"cache": ("off", "moments are decoded when needed")}
        size, canvas = choose_frame_size(spec, inspect_clips(index)[0], resolved)
        rate, window = choose_window(index, spec, resolved)
        if len(index) < 2:
            raise SslkitError(f"{index.source} has one video", "expected 2 or more", flag="data")
        return cls(index, size, CanvasFormat(canvas, "whole"), window, rate, resolved)

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write videos of a second in which a square moves, with a tone that is the higher the brighter it is."""
        random, place = np.random.default_rng(0), folder / "videos"
        place.mkdir(exist_ok=True)
        for number in range(samples):
            pictures, (pitch, left, top) = np.zeros((10, 32, 32, 3), np.uint8), random.integers([300, 0, 0], [1500, 15, 24])
            for time, picture in enumerate(pictures):
                picture[...] = random.integers(0, 40, 3)
                picture[top : top + 8, left + time : left + time + 8] = 80 + pitch // 10
            noise = random.normal(scale=0.01, size=8000)
            tone = 0.3 * np.sin(2 * np.pi * pitch * np.arange(8000) / 8000)
            write_video(place / f"{number:04}.mkv", pictures, 10, (tone + noise).astype(np.float32), 8000)
        return str(place)

    def key(self) -> str:
        """Return the data's own key, and how frames and sound are read."""
        return f"{self.index.key()} {self.form} {decoder_versions()} {self.info.size} {self.rate} {self.samples}"

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `video`, uint8 `[B, 2, side, side, 3]`, `audio`, float32 `[B, 2, samples]`, `aspect` and `apart` `[B]`.

        A broken video is black and silent.
        """
        count, side = len(rows), self.form.side
        video = np.zeros((count, _MOMENTS, side, side, 3), dtype=np.uint8)
        audio = np.zeros((count, _MOMENTS, self.samples), dtype=np.float32)
        aspect, apart = np.ones(count, dtype=np.float32), np.zeros(count, dtype=np.bool_)
        broken: dict[int, str] = {}
        for place, row in enumerate(rows):
            try:
                with decoding(self.index, int(row)):
                    moments = self._moments(int(row), None if draw is None else draw.generator(int(row)))
                    video[place], audio[place] = moments.frames.canvases, moments.sound
                    aspect[place], apart[place] = moments.frames.aspect, moments.apart
            except UnreadableSampleError as reason:
                broken[place] = str(reason)
        return {"video": video, "audio": audio, "aspect": aspect, "apart": apart}, broken

    def prepare(self, batch: Batch) -> Batch:
        """Return `video` as float32 `[B, 2, C, side, side]` in [0, 1]."""
        frames = batch["video"].permute(0, 1, 4, 2, 3).to(torch.float32, memory_format=torch.contiguous_format)
        return {**batch, "video": frames.div_(255)}

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the middle of each frame at the training size, `[B, 2, C, size, size]`."""
        frames = batch["video"]
        aspect = batch["aspect"].repeat_interleave(frames.shape[1])
        middle: Tensor = center_view(frames.flatten(0, 1), self.info.size, aspect).unflatten(0, frames.shape[:2])
        return middle

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return how many processes decode."""
        if requested != "auto":
            return int(requested), "as given"
        return available_cores(), "one per core: frames and sound are decoded in every epoch"

    def _moments(self, row: int, random: np.random.Generator | None) -> _Moments:
        """Return two moments of a video; raises UnreadableSampleError."""
        with silence_decoders(), self.index.open(row) as stream, load_av().open(stream) as container:
            clip, track = VideoFile(container), SoundTrack(container)
            last = last_start(track, self.rate, self.samples)
            window = track.length - last  # samples of the track
            for _ in range(1 if random is None else TRIES):
                starts = np.array([0, last]) if random is None else _draw_starts(last, window, random)
                waves = [read_window(track, int(start), self.rate, self.samples) for start in starts]
                if not any(map(is_silent, waves)) or (random is None and not all(map(is_silent, waves))):
                    break
            else:
                raise UnreadableSampleError(f"silent in {TRIES} places of it" if last else "silent")
            middle = (starts + window / 2) / track.rate + track.start - clip.start
            numbers = np.clip((middle * clip.per_second).astype(int), 0, clip.length - 1)
            order, position = np.argsort(numbers), 0.5 if random is None else float(random.random())
            frames = clip.frames(numbers[order], self.form, position)
            sound = np.stack([np.pad(wave, (0, self.samples - len(wave))) for wave in waves])
            canvases = frames.canvases[np.argsort(order)]
            return _Moments(Frames(canvases, frames.aspect), sound, abs(int(starts[1] - starts[0])) >= window)


def _draw_starts(last: int, window: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return where two windows begin, in any order; they do not overlap unless there is no room."""
    if last < window:
        return random.integers(last + 1, size=_MOMENTS)
    starts = np.sort(random.integers(last - window + 1, size=_MOMENTS)) + np.array([0, window])
    return random.permutation(starts)
