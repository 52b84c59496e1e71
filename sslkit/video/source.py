"""Clips as a source: folders of frames or video files, of which frames are decoded where they are wanted."""

import os
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.source import OpenSpec, ReadSeed, Rows
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.decode import decoding, inspect_samples, silence_decoders
from sslkit.data.index import Index, index_files, stamp_of, with_folders_as_labels
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.process_share import available_cores
from sslkit.data.tables import read_columns, read_table
from sslkit.image.decode import CanvasFormat
from sslkit.image.options import ImageOptions
from sslkit.image.source import choose_canvas, choose_size
from sslkit.image.transforms import center_view
from sslkit.video.clip_cache import CachedClip, ClipCache, choose_cache, decoder_versions
from sslkit.video.encoders.base import VideoEncoder
from sslkit.video.options import CLIPS, FEWEST, VIDEO_FILES, VideoOptions
from sslkit.video.poses import count_values, read_poses
from sslkit.video.reading import FrameFolder, Frames, VideoFile, frame_names, motion, open_clip

_FRAMES = 16  # of a window: at most


_STEP = 6  # 16 frames then span the 96 from which the paper's tuples come (Misra et al., 2016, section 3.2)


_SHORTER = 0.05  # share of clips that may be shorter than a window


_CANDIDATES = 3  # windows that are looked at for motion


_SHOWN = 8  # frames of a clip in an evaluation of frames


_WINDOWS = 2  # of a clip in an evaluation of clips


_ALIKE = 0.01  # by which frame rates of cameras may differ


_ASKED = 100  # clips that are looked into to choose settings


class VideoSource(IndexedSource):
    """Clips; a batch has `video`, float32 `[B, T, C, side, side]` in [0, 1], and, as for images, `aspect`, float32 `[B]`.

    In training they are a window of `T` frames, at most every sixth, that is drawn with a chance in proportion to its
    motion. In evaluations of encoders of frames they are eight, evenly spaced from beginning to end; encoders of clips see
    windows as in training, at the beginning and the end (`video` holds them one after the other). Features are averaged.
    `info.details` has `frames`, which is T. A single image, named in a list, is a clip of one frame, for evaluations.
    """

    kind: ClassVar = CLIPS
    noun: ClassVar = CLIPS.noun

    def __init__(
        self,
        index: Index,
        size: int,
        form: CanvasFormat,
        frames: int,
        step: int,
        resolved: dict[str, tuple[Any, str]],
        windows: int = 0,
        cache: ClipCache | None = None,
        poses: str | None = None,
    ) -> None:
        self.index, self.resolved, self.location = index, resolved, index.source
        self.form, self.frames, self.step = form, frames, step
        self.windows = windows  # in evaluations; 0: frames from all of the clip
        self.cache, self.poses = cache, poses
        details, self.on_request = {"frames": frames}, {}
        if poses is not None:
            details["pose"] = count_values(index, poses)
            self.on_request["pose"] = "poses"
        if index.beside:
            details["cameras"] = 1 + len(index.beside)
            self.on_request |= {"cameras": "cameras", "cameras_aspect": "cameras"}
        self.info = DataInfo(len(index), size, 3, "video", details)

    @classmethod
    def list_samples(cls, location: str, spec: OpenSpec) -> Index:
        """Index one part of the data: frames that lie in one folder are one clip."""
        refuse_pixel_options(spec)
        index = super().list_samples(location, spec)
        if spec.table(VideoOptions).cameras == "all":
            index = replace(index, beside=_other_cameras(Path(location), index))
        return _by_folder(index) if Path(location).is_dir() else _with_folders_measured(index)

    @classmethod
    def for_training(cls, index: Index, spec: OpenSpec) -> Self:
        """Return clips whose windows and frames are as asked for, or suit the data."""
        video = spec.table(VideoOptions)
        resolved: dict[str, tuple[Any, str]] = {}
        sizes, lengths = inspect_clips(index)
        usual = int(np.median(lengths))
        frames, step = video.frames, video.frame_step
        size, canvas = choose_frame_size(spec, sizes, resolved)
        if usual < FEWEST:
            raise SslkitError(
                f"clips in {index.source} have {usual} frame{'s'[: usual != 1]}", f"expected {FEWEST} or more", flag="data"
            )
        if frames == "auto":
            # Few clips should be shorter than a window, whatever the others have.
            shortest = int(np.quantile(lengths, _SHORTER))
            shortest -= shortest % 2 if shortest > 6 else 0  # encoders of clips take them in pairs
            frames = min(_FRAMES, max(FEWEST, shortest))
            resolved["frames"] = frames, "the usual window" if frames == _FRAMES else f"most clips have {frames} or more"
        if step == "auto":
            step = _STEP
            resolved["frame_step"] = step, "at most: short clips take a smaller one"
        form = CanvasFormat(canvas, "whole")
        if index.beside and spec.cache != "off" and spec.cache != "auto":
            raise SslkitError("clips of several cameras are not cached", "leave it out", flag="cache")
        cache, resolved["cache"] = choose_cache(index, form, spec, float(np.mean(lengths)))
        return cls(index, int(size), form, int(frames), int(step), resolved, cache=cache, poses=video.poses)

    @classmethod
    def for_evaluation(cls, index: Index, spec: OpenSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return clips at a size, on the canvas that suits both, or on that of `like`."""
        canvas, _ = choose_canvas(size, inspect_clips(index if like is None else like.index)[0], "center")
        index = replace(index, beside=())  # features are of the first camera
        if isinstance(encoder, VideoEncoder):
            return cls(index, size, CanvasFormat(canvas), encoder.frames, encoder.frame_step, {}, _WINDOWS)
        return cls(index, size, CanvasFormat(canvas), _SHOWN, _STEP, {})

    @classmethod
    def for_finetuning(cls, index: Index, spec: OpenSpec, encoder: Encoder | None) -> Self:
        """Return windows as the encoder of clips has been trained on."""
        if not isinstance(encoder, VideoEncoder):
            raise SslkitError("clips need an encoder of clips, which a checkpoint holds", "name a checkpoint", flag="ckpt")
        options = spec.table(VideoOptions)
        for name, trained in (("frames", encoder.frames), ("frame_step", encoder.frame_step)):
            if getattr(options, name) not in ("auto", trained):
                problem = f"the encoder was trained with {trained} (got {getattr(options, name)})"
                raise SslkitError(problem, "leave it out", flag=name)
        source = cls.for_training(index, spec)
        resolved = source.resolved | {
            name: (value, "as in pretraining")
            for name, value in (("frames", encoder.frames), ("frame_step", encoder.frame_step))
            if getattr(options, name) == "auto"
        }
        return cls(index, source.info.size, source.form, encoder.frames, encoder.frame_step, resolved, cache=source.cache)

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write clips of twelve frames in which a bright square moves over a dark ground."""
        random, place = np.random.default_rng(0), folder / "clips"
        for number in range(samples):
            clip = place / f"{number:04}"
            clip.mkdir(parents=True, exist_ok=True)
            (left, top), (right, down) = random.integers(0, 24, 2), random.integers(-2, 3, 2)
            ground = random.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            for frame in range(12):
                picture = ground.copy()
                x, y = (left + right * frame) % 24, (top + (down or 1) * frame) % 24
                picture[y : y + 8, x : x + 8] = 255
                Image.fromarray(picture).save(clip / f"{frame}.png")
        return str(place)

    def key(self) -> str:
        """Return the data's own key, the canvas, the size and the frames."""
        return f"{self.index.key()} {self.form} {decoder_versions()} {self.info.size} {self.frames} {self.step} {self.windows}"

    def evaluation_fingerprint(self) -> str:
        """Return the hash of what the first camera saw, which evaluations read."""
        return replace(self.index, beside=()).fingerprint()

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return `video`, uint8 `[B, T, side, side, 3]`, and `aspect`, float32 `[B]`; a broken one is black.

        With `--poses`, `pose`, float32 `[B, T, P]`, too; with other cameras, `cameras`, uint8 `[B, V, T, side, side, 3]`, and
        `cameras_aspect`, float32 `[B, V]`.
        """
        length = self.frames * (1 if draw is not None else max(1, self.windows))
        clips = np.zeros((len(rows), length, self.form.side, self.form.side, 3), dtype=np.uint8)
        aspects = np.ones(len(rows), dtype=np.float32)
        poses = np.zeros((len(rows), length, self.info.details.get("pose", 0)), dtype=np.float32)
        cameras = np.zeros((len(rows), len(self.index.beside), *clips.shape[1:]), dtype=np.uint8)
        cameras_aspect = np.ones(cameras.shape[:2], dtype=np.float32)
        broken: dict[int, str] = {}
        for place, row in enumerate(rows):
            try:
                with decoding(self.index, int(row)):
                    frames, numbers = self._window(int(row), None if draw is None else draw.generator(int(row)))
                    clips[place] = frames.canvases
                    aspects[place] = frames.aspect if self.form.geometry == "whole" else 1
                    if self.poses is not None:
                        poses[place] = read_poses(self.index, int(row), self.poses, poses.shape[2])[numbers]
                    for number, camera in enumerate(self.index.beside):
                        other = _at_the_same_time(camera, int(row), numbers, self.form, frames.per_second)
                        cameras[place, number], cameras_aspect[place, number] = other.canvases, other.aspect
            except UnreadableSampleError as reason:
                broken[place] = str(reason)
        arrays: dict[str, NDArray[Any]] = {"video": clips, "aspect": aspects}
        if self.poses is not None:
            arrays["pose"] = poses
        if self.index.beside:
            arrays |= {"cameras": cameras, "cameras_aspect": cameras_aspect}
        return arrays, broken

    def prepare(self, batch: Batch) -> Batch:
        """Return `video` as float32 `[B, T, C, side, side]` in [0, 1], and so `cameras`."""
        names = [name for name in ("video", "cameras") if name in batch]
        clips = {
            name: batch[name].movedim(-1, -3).to(torch.float32, memory_format=torch.contiguous_format).div_(255)
            for name in names
        }
        return {**batch, **clips}

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return the middle of each frame at the training size, `[B, T, C, size, size]`.

        To an encoder of images they are T views of a clip, to one of videos they are the clip, or several windows of it,
        `[B, windows, T, C, size, size]`.
        """
        clip = batch["video"]
        aspect = batch["aspect"].repeat_interleave(clip.shape[1]) if self.form.geometry == "whole" else None
        frames: Tensor = center_view(clip.flatten(0, 1), self.info.size, aspect).unflatten(0, clip.shape[:2])
        return frames.unflatten(1, (-1, self.frames)) if self.windows else frames

    def encoder_options(self, encodes: str) -> dict[str, Any]:
        """Return the window that encoders of clips are trained on."""
        return {"frames": self.frames, "frame_step": self.step} if encodes == "video" else {}

    def cache_bytes(self) -> int:
        """Return about what all frames take in the cache."""
        return 0 if self.cache is None else self.cache.bytes

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return how many processes decode."""
        if requested != "auto":
            return int(requested), "as given"
        when = "in every epoch" if self.cache is None else "once"
        return available_cores(), f"one per core: frames are decoded {when}"

    def _open(self, row: int) -> AbstractContextManager[FrameFolder | VideoFile | CachedClip]:
        return open_clip(self.index, row) if self.cache is None else self.cache.open(self.index, row, self.form)

    def _window(self, row: int, random: np.random.Generator | None) -> tuple[Frames, NDArray[np.int64]]:
        """Return frames and their numbers in the clip; raises UnreadableSampleError for a clip with too few."""
        with silence_decoders(), self._open(row) as clip:
            if random is None and not self.windows:
                numbers = np.linspace(0, clip.length - 1, self.frames).round().astype(int)
                return clip.frames(numbers, self.form), numbers
            stride = max(1, min(self.step, clip.length // self.frames))
            last = clip.length - 1 - stride * (self.frames - 1)
            if random is None:
                starts = np.linspace(0, max(0, last), self.windows).round().astype(int)
                # Of a clip shorter than a window, the last frame is repeated; of overlapping windows, none is decoded twice.
                numbers = np.minimum((starts[:, None] + stride * np.arange(self.frames)).ravel(), clip.length - 1)
                distinct, places = np.unique(numbers, return_inverse=True)
                frames = clip.frames(distinct, self.form)
                return replace(frames, canvases=frames.canvases[places]), numbers
            if clip.length < self.frames:
                raise UnreadableSampleError(f"{clip.length} frames, expected {self.frames} or more")
            starts = np.unique(random.integers(last + 1, size=_CANDIDATES))
            position = float(random.random())
            windows = [clip.frames(start + stride * np.arange(self.frames), self.form, position) for start in starts]
            moves = np.array([motion(window.canvases) for window in windows]) + 1e-3  # where nothing moves, any will do
            chosen = random.choice(len(windows), p=moves / moves.sum())
            return windows[chosen], starts[chosen] + stride * np.arange(self.frames)


def refuse_pixel_options(spec: OpenSpec) -> None:
    """Raise SslkitError for options of images that frames do not have."""
    for name in ("layout", "channels", "range"):
        if getattr(spec.table(ImageOptions), name) != "auto":
            raise SslkitError("frames are read as 8-bit RGB", "leave it out", flag=name)
    if spec.table(ImageOptions).targets is not None:
        raise SslkitError("targets of clips are not read", "leave it out", flag="targets")


def choose_frame_size(spec: OpenSpec, sizes: NDArray[np.int64], resolved: dict[str, tuple[Any, str]]) -> tuple[int, int]:
    """Return the size of frames and of their canvases that were asked for, or suit frames of `sizes` `[n, 2]`.

    What `auto` became is added to `resolved`.
    """
    size, canvas = spec.table(ImageOptions).size, spec.table(ImageOptions).canvas
    if size == "auto":
        short = int(np.median(sizes.min(axis=1)))
        size = choose_size(short)
        resolved["size"] = size, f"frames have {short} px on the short side"
    if canvas == "auto":
        resolved["canvas"] = choose_canvas(size, sizes, "whole")
        canvas = resolved["canvas"][0]
    return size, int(canvas)


def _other_cameras(table: Path, index: Index) -> tuple[Index, ...]:
    """Return what the columns path2, path3 and so on of a table list, row by row."""
    names = read_columns(table) if table.suffix.lower() == ".csv" else []
    columns = list(takewhile(lambda column: column in names, (f"path{number}" for number in count(2))))
    if not columns:
        raise SslkitError(f"{table} has one video a row", "expected a .csv with columns path, path2, ...", flag="cameras")
    listed = read_table(table)
    return tuple(_with_folders_measured(index_files(str(table), table.parent, listed.column(column))) for column in columns)


def _at_the_same_time(
    camera: Index, row: int, numbers: NDArray[np.int64], form: CanvasFormat, per_second: float | None
) -> Frames:
    """Return the frames of another camera; raises UnreadableSampleError if it stopped before, or has another frame rate."""
    with decoding(camera, row), silence_decoders(), open_clip(camera, row) as clip:
        rate = clip.per_second if isinstance(clip, VideoFile) else None
        if rate is not None and per_second is not None and abs(rate / per_second - 1) > _ALIKE:
            problem = f"{camera.name(row)} has {rate:g} frames a second, that of column path {per_second:g}"
            raise UnreadableSampleError(problem)
        if clip.length <= numbers.max():
            raise UnreadableSampleError(f"{camera.name(row)} has {clip.length} frames, fewer than that of column path")
        distinct, places = np.unique(numbers, return_inverse=True)
        frames = clip.frames(distinct, form)
        return replace(frames, canvases=frames.canvases[places])


def _by_folder(index: Index) -> Index:
    """Return an index of frames and video files as one of clips: files, and folders of frames without clips inside."""
    clips: dict[str, NDArray[np.int64]] = {}
    for path, stamp in zip(index.paths, index.stamps, strict=True):
        clip = path if os.path.splitext(path)[1].lower() in VIDEO_FILES else path.rpartition("/")[0]
        before = clips.get(clip)
        # A folder's are all bytes in it, the newest time, and all inodes.
        clips[clip] = stamp if before is None else _add_frame(before, stamp)
    above = {"/".join(parts[:end]) for clip in clips for parts in [clip.split("/")] for end in range(len(parts))}
    if not clips.keys() - {""}:
        raise SslkitError(f"{index.source} holds frames and no clips", "expected a folder of frames for each clip", flag="data")
    clips = {clip: stamp for clip, stamp in clips.items() if clip not in above}  # images beside clips are covers
    by_clip = replace(index, paths=list(clips), stamps=np.array(list(clips.values())), labels=None, classes=())
    return with_folders_as_labels(by_clip)


def _add_frame(clip: NDArray[np.int64], frame: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the stamp of a folder with one more frame."""
    return np.array([clip[0] + frame[0], max(clip[1], frame[1]), clip[2] ^ frame[2]])


def _with_folders_measured(index: Index) -> Index:
    """Return an index of listed clips with the bytes and the newest time of the frames in each folder."""
    stamps = index.stamps.copy()
    for row, path in enumerate(index.paths):
        if (folder := index.root / path).is_dir():
            statuses = [status for name in frame_names(folder) if (status := os.stat(folder / name))]
            stamps[row] = 0, -1, 0
            for status in statuses:
                stamps[row] = _add_frame(stamps[row], np.array(stamp_of(status)))
    return replace(index, stamps=stamps)


def inspect_clips(index: Index) -> tuple[NDArray[np.int64], list[int]]:
    """Return width and height, `[n, 2]`, and lengths of some clips spread over the data."""

    def look(row: int) -> tuple[tuple[int, int], int]:
        with open_clip(index, row) as clip:
            return clip.size, clip.length

    sizes, lengths = zip(*inspect_samples(index, look, "clip", _ASKED), strict=True)
    return np.array(sizes), list(lengths)
