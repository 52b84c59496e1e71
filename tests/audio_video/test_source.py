"""Videos with sound: which frame and which sound belong together, and what is wrong with some."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sslkit.audio.reading import open_recording
from sslkit.audio.source import AudioSource
from sslkit.audio_video.source import AudioVideoSource
from sslkit.audio_video.writing import write_video
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.specs.data import DataSpec
from sslkit.specs.train import TrainSpec

RATE, FPS = 8000, 10
SUFFIXES = pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])


def stairs(seconds: float) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Return frames that get brighter by 4 and a tone that gets higher by 40 Hz, in each tenth of a second."""
    count = round(seconds * FPS)
    frames = np.broadcast_to(4 * np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 32, 48, 3))
    pitch = np.repeat(300 + 40 * np.arange(count), RATE // FPS)
    return np.ascontiguousarray(frames), (0.5 * np.sin(2 * np.pi * np.cumsum(pitch) / RATE)).astype(np.float32)


def pitch_of(wave: NDArray[np.float32]) -> float:
    """Return the frequency of a tone in Hz, to a few."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)), 2**16))
    return float(spectrum.argmax()) * RATE / 2**16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "videos").mkdir()
    return tmp_path / "videos"


@SUFFIXES
def test_a_frame_is_that_in_the_middle_of_its_sound(folder: Path, suffix: str) -> None:
    for name in "ab":
        write_video(folder / f"{name}{suffix}", *pair(4.0))
    source = AudioVideoSource.open(TrainSpec(data=str(folder), seconds=0.1))
    assert source.info.details == {"sample_rate": RATE, "window": 100} and source.info.size == 32
    starts = set()
    for epoch in range(8):
        arrays, broken = source.read(np.arange(2), ReadSeed(0, epoch))
        assert not broken and arrays["apart"].all() and arrays["audio"].shape == (2, 2, 800)
        for frame, wave in zip(arrays["video"].reshape(4, -1), arrays["audio"].reshape(4, -1), strict=True):
            step = float(frame.mean()) / 4
            starts.add(round(step))
            assert abs((pitch_of(wave) - 300) / 40 - step) <= 1.1  # the window may begin in the step before
    assert len(starts) > 10
    (again, _), (swapped, _) = source.read(np.arange(2), ReadSeed(0, 7)), source.read(np.arange(2)[::-1], ReadSeed(0, 7))
    assert np.array_equal(again["audio"], arrays["audio"]) and np.array_equal(swapped["video"][::-1], arrays["video"])


def pair(seconds: float) -> tuple[NDArray[np.uint8], int, NDArray[np.float32], int]:
    frames, sound = stairs(seconds)
    return frames, FPS, sound, RATE


@SUFFIXES
def test_the_sound_of_a_video_is_read_where_it_is_wanted(folder: Path, suffix: str) -> None:
    """As of a sound file, from any sample on: also where decoding has to begin earlier."""
    frames, sound = stairs(6.0)
    write_video(folder / f"a{suffix}", frames, FPS, sound, RATE)
    index = AudioSource.read_index(str(folder), DataSpec())
    with open_recording(index, 0) as recording:
        assert recording.rate == RATE and abs(recording.length - len(sound)) <= 2048
        for start in (0, 100, 7_999, 30_000, 44_000, 12_345):
            wave = recording.read(start, 1600)
            assert len(wave) == 1600
            error = np.sqrt(np.mean((wave - sound[start : start + 1600]) ** 2))
            assert error < (0.06 if suffix == ".mp4" else 1e-4), start
        assert len(recording.read(recording.length - 10, 1600)) == 10


def write_sound(path: Path, codec: str, sound: NDArray[np.float32], rate: int, late: float = 0.0) -> None:
    """Write a video with sound by a codec, which begins `late` seconds after the picture."""
    with av.open(str(path), "w") as container:
        picture = container.add_stream("mpeg4", rate=FPS)
        picture.width, picture.height, picture.pix_fmt = 48, 32, "yuv420p"
        track = container.add_stream(codec, rate=rate, layout="mono")
        for _ in range(round((late + len(sound) / rate) * FPS)):
            container.mux(picture.encode(av.VideoFrame.from_ndarray(np.zeros((32, 48, 3), np.uint8), format="rgb24")))
        block = av.AudioFrame.from_ndarray(sound[None], format="fltp", layout="mono")
        block.sample_rate, block.time_base, block.pts = rate, Fraction(1, rate), round(late * rate)
        for part in av.AudioResampler(format=track.codec_context.format.name, rate=rate).resample(block):
            container.mux(track.encode(part))
        for stream in (picture, track):
            container.mux(stream.encode())


@pytest.mark.parametrize(("codec", "suffix"), [("aac", ".mkv"), ("pcm_s16le", ".mkv"), ("mp2", ".mkv"), ("aac", ".mov")])
def test_times_that_containers_round_leave_no_gaps(folder: Path, codec: str, suffix: str) -> None:
    """Matroska counts milliseconds, in which a packet of 44,100 Hz does not end."""
    sound = (0.4 * np.sin(2 * np.pi * 440 * np.arange(3 * 44_100) / 44_100)).astype(np.float32)
    write_sound(folder / f"a{suffix}", codec, sound, 44_100)
    index = AudioSource.read_index(str(folder), DataSpec())
    with open_recording(index, 0) as recording:
        for start in (0, 30_000, 70_001):
            wave = recording.read(start, 44_100)[4000:-4000]
            steps = np.abs(np.diff(wave))
            assert steps.max() < 0.05 and abs(np.abs(wave).max() - 0.4) < 0.05, start  # a sine of 440 Hz has steps of 0.025


def test_sound_that_begins_late_is_as_long_as_it_is(folder: Path) -> None:
    sound = (0.4 * np.sin(2 * np.pi * 440 * np.arange(2 * RATE) / RATE)).astype(np.float32)
    write_sound(folder / "a.mkv", "pcm_s16le", sound, RATE, late=1.0)
    index = AudioSource.read_index(str(folder), DataSpec())
    with open_recording(index, 0) as recording:
        assert abs(recording.length - len(sound)) < RATE / 5
        assert np.abs(recording.read(0, 800)).max() > 0.35 and np.abs(recording.read(14_000, 800)).max() > 0.35


def test_recordings_may_be_videos(folder: Path) -> None:
    for name in "ab":
        write_video(folder / f"{name}.mp4", *pair(2.0))
    audio = AudioSource.open(DataSpec(data=str(folder)))
    arrays, broken = audio.read(np.arange(2), ReadSeed(0, 0))
    assert (
        not broken and arrays["audio"].shape == (2, 2, round(0.96 * RATE)) and (np.abs(arrays["audio"]).max(axis=2) > 0.4).all()
    )


def test_windows_of_short_videos_overlap(folder: Path) -> None:
    for name in "ab":
        write_video(folder / f"{name}.mkv", *pair(1.0))
    source = AudioVideoSource.open(TrainSpec(data=str(folder), seconds=0.8))
    arrays, _ = source.read(np.arange(2), ReadSeed(0, 0))
    assert not arrays["apart"].any() and (np.abs(arrays["audio"]).max(axis=2) > 0.4).all()
    arrays, _ = AudioVideoSource.open(TrainSpec(data=str(folder), seconds=2.0)).read(np.arange(2), ReadSeed(0, 0))
    assert not arrays["apart"].any() and not arrays["audio"][..., 8000:].any()
    assert np.abs(arrays["video"].mean(axis=(2, 3, 4)) - 20).max() < 2  # the middle of what there is


def test_without_draw_moments_are_beginning_and_end(folder: Path) -> None:
    for name in "ab":
        write_video(folder / f"{name}.mkv", *pair(2.0))
    source = AudioVideoSource.open(TrainSpec(data=str(folder), seconds=0.2))
    arrays, _ = source.read(np.arange(2))
    assert np.abs(arrays["video"].mean(axis=(2, 3, 4)) - np.array([4, 76])).max() <= 2
    view = source.view(source.prepare({name: torch.from_numpy(array) for name, array in arrays.items()}), "image")
    assert view.shape == (2, 2, 3, 32, 32)


@pytest.mark.parametrize(
    ("kind", "reason"), [("mute", "no sound in it"), ("silent", "silent"), ("text", "Error"), ("gone", "no such")]
)
def test_what_is_broken_has_a_reason(folder: Path, kind: str, reason: str) -> None:
    frames, sound = stairs(1.0)
    for name in "abc":
        write_video(folder / f"{name}.mkv", frames, FPS, sound, RATE)
    bad = folder / "a.mkv"
    source_first = AudioVideoSource.open(TrainSpec(data=str(folder)))
    if kind == "silent":
        write_video(bad, frames, FPS, 0 * sound, RATE)
    elif kind == "text":
        bad.write_text("nothing of this is a video" * 100)
    elif kind == "mute":
        write_mute(bad, frames)
    source = source_first
    if kind == "gone":
        bad.unlink()
    else:
        source = AudioVideoSource.open(TrainSpec(data=str(folder), reindex=True))
    for draw in (ReadSeed(0, 0), None):
        arrays, broken = source.read(np.arange(3), draw)
        assert list(broken) == [0] and reason in broken[0]
        assert not arrays["video"][0].any() and not arrays["audio"][0].any() and arrays["audio"][1].any()


def write_mute(path: Path, frames: NDArray[np.uint8]) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=FPS)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def test_data_that_cannot_be_trained_on_is_refused(folder: Path) -> None:
    with pytest.raises(SslkitError, match=r"no video in .*looked for .*\.mp4"):
        AudioVideoSource.open(TrainSpec(data=str(folder)))
    frames, sound = stairs(1.0)
    write_video(folder / "a.mkv", frames, FPS, sound, RATE)
    with pytest.raises(SslkitError, match=r"has one video \(expected 2 or more"):
        AudioVideoSource.open(TrainSpec(data=str(folder)))
    write_video(folder / "b.mkv", frames, FPS, sound, RATE)
    with pytest.raises(SslkitError, match="--cache: videos with sound are not cached"):
        AudioVideoSource.open(TrainSpec(data=str(folder), cache="on"))
    with pytest.raises(SslkitError, match="--layout: frames are read as 8-bit RGB"):
        AudioVideoSource.open(TrainSpec(data=str(folder), layout="NHWC"))
    for name in "ab":
        write_mute(folder / f"{name}.mkv", frames)
    with pytest.raises(SslkitError, match=r"none of 2 files tried in .* is a readable recording \(a\.mkv: no sound in it\)"):
        AudioVideoSource.open(TrainSpec(data=str(folder)))
