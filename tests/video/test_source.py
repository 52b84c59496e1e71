"""Clips: folders of frames and video files, windows that move, and what is wrong with some."""

import os
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.image.decode import CanvasFormat
from sslkit.specs.data import DataSpec
from sslkit.video.reading import motion, open_clip
from sslkit.video.source import VideoSource

Run = Callable[..., Any]
ENCODER = build_encoder(recipe_for("resnet_micro", 16, 3, {"width": "8"}))


def folder_of(place: Path, values: list[int], side: int = 16) -> None:
    """Write frames whose gray value says which they are, named 0.png to N.png."""
    place.mkdir(parents=True)
    for number, value in enumerate(values):
        Image.fromarray(np.full((side, side, 3), value, dtype=np.uint8)).save(place / f"{number}.png")


def file_of(path: Path, values: list[int], size: tuple[int, int] = (32, 32), reordered: bool = False) -> None:
    """Write a video of gray frames with a white corner; `reordered`: B-frames, and a keyframe every few."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        (stream.width, stream.height), stream.pix_fmt, stream.bit_rate = size, "yuv420p", 4_000_000
        if reordered:
            stream.codec_context.max_b_frames, stream.codec_context.gop_size = 2, 6
        for value in values:
            picture = np.full((size[1], size[0], 3), value, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())


def frames_of(video: VideoSource, row: int, draw: ReadSeed | None) -> list[int]:
    clips, broken = video.read(np.array([row]), draw)
    assert not broken, broken
    return [int(frame.mean().round()) for frame in clips["video"][0]]


RAMP = [8 * number for number in range(30)]


@pytest.mark.parametrize("option", [{"layout": "NHWC"}, {"channels": "1"}, {"range": "0,10"}])
def test_options_of_pixels_are_refused(option: dict[str, str], tmp_path: Path) -> None:
    folder_of(tmp_path / "a", [0, 8, 16, 24, 32])
    with pytest.raises(SslkitError, match=f"--{next(iter(option))}: frames are read as 8-bit RGB"):
        VideoSource.open(DataSpec(data=str(tmp_path), **option))


def test_frames_come_in_their_order(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", RAMP)  # 2.png before 10.png
    folder_of(tmp_path / "b", RAMP)
    video = VideoSource.open(DataSpec(data=str(tmp_path)))
    assert (video.info.samples, video.frames, video.info.modality, video.info.size) == (2, 16, "video", 32)
    for epoch in range(5):
        frames = frames_of(video, 0, ReadSeed(0, epoch))
        assert frames == [frames[0] + 8 * place for place in range(16)]
        assert frames == frames_of(video, 0, ReadSeed(0, epoch))
    assert len({tuple(frames_of(video, row, ReadSeed(0, epoch))) for row in (0, 1) for epoch in range(5)}) > 1
    evaluated = VideoSource.for_evaluation(video.index, DataSpec(), ENCODER, 16)
    assert frames_of(evaluated, 0, None) == [8 * round(place) for place in np.linspace(0, 29, 8)]


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_of_files_are_those_of_folders(tmp_path: Path, suffix: str) -> None:
    file_of(tmp_path / f"a{suffix}", RAMP)
    file_of(tmp_path / f"b{suffix}", RAMP)
    video = VideoSource.open(DataSpec(data=str(tmp_path)))
    for epoch in range(5):
        frames = np.array(frames_of(video, 0, ReadSeed(0, epoch)))
        assert np.abs(frames - (frames[0] + 8 * np.arange(16))).max() <= 4  # what the codec loses
    evaluated = VideoSource.for_evaluation(video.index, DataSpec(), ENCODER, 16)
    assert np.abs(np.array(frames_of(evaluated, 0, None)) - 8 * np.linspace(0, 29, 8).round()).max() <= 4


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mkv"])
def test_frames_that_lie_in_another_order_are_right(tmp_path: Path, suffix: str) -> None:
    values = [2 * number for number in range(120)]
    file_of(tmp_path / f"a{suffix}", values, reordered=True)
    index = VideoSource.read_index(str(tmp_path), DataSpec())
    for numbers in ([0], [5], [7, 8], [0, 119], [13, 40, 41, 117], [118], [119]):
        with open_clip(index, 0) as clip:
            assert clip.length == 120
            frames = clip.frames(np.array(numbers), CanvasFormat(16)).canvases
        assert np.abs(frames.mean(axis=(1, 2, 3)) - 2 * np.array(numbers)).max() < 1.5, numbers  # the codec loses 1


@pytest.mark.parametrize(("degrees", "corner"), [(90, (0, 1)), (180, (1, 1)), (270, (1, 0))])
def test_videos_are_turned_as_they_were_held(tmp_path: Path, degrees: int, corner: tuple[int, int]) -> None:
    """Of a wide video whose upper left is white and which is displayed turned clockwise."""
    file = tmp_path / "a.mp4"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 64, 32, "yuv420p", 4_000_000
        picture = np.zeros((32, 64, 3), dtype=np.uint8)
        picture[:16, :32] = 255
        for _ in range(6):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    cosine, sine = {90: (0, 1), 180: (-1, 0), 270: (0, -1)}[degrees]
    content, fixed = bytearray(file.read_bytes()), 1 << 16
    place = content.index(b"tkhd") + 44  # of the matrix in the header of the track
    content[place : place + 36] = struct.pack(
        ">9i", cosine * fixed, sine * fixed, 0, -sine * fixed, cosine * fixed, 0, 0, 0, 1 << 30
    )
    file.write_bytes(content)
    index = VideoSource.read_index(str(tmp_path), DataSpec())
    with open_clip(index, 0) as clip:
        assert clip.size == ((64, 32) if degrees == 180 else (32, 64))
        canvas = clip.frames(np.array([0]), CanvasFormat(16, "whole")).canvases[0].mean(axis=2)
    quarters = canvas.reshape(2, 8, 2, 8).mean(axis=(1, 3))
    assert quarters[corner] > 200 and quarters.sum() < 300


def test_windows_are_drawn_where_something_moves(tmp_path: Path) -> None:
    values = [100] * 100 + [(40 * number) % 255 for number in range(30)]
    folder_of(tmp_path / "a", values)
    folder_of(tmp_path / "b", values)
    video = VideoSource.open(DataSpec(data=str(tmp_path)))
    moving = [len(set(frames_of(video, 0, ReadSeed(0, epoch)))) > 1 for epoch in range(60)]
    # One draw finds movement in some 90 of 115 places, at a stride of 6; the best of three in nearly all.
    assert sum(moving) > 54
    assert motion(np.zeros((4, 8, 8, 3), dtype=np.uint8)) == 0
    assert motion(np.stack([np.full((8, 8, 3), 10 * number, dtype=np.uint8) for number in range(4)])) == 10


def test_clips_have_the_labels_of_their_folders(tmp_path: Path) -> None:
    folder_of(tmp_path / "walk" / "a", RAMP)
    folder_of(tmp_path / "run" / "b", RAMP)
    file_of(tmp_path / "run" / "c.mp4", RAMP)
    index = VideoSource.read_index(str(tmp_path), DataSpec())
    assert list(index.paths) == ["run/b", "run/c.mp4", "walk/a"]
    assert index.labels is not None
    assert [index.classes[label] for label in index.labels] == ["run", "run", "walk"]
    table = tmp_path / "table.csv"
    table.write_text("path,what\nrun/b,x\nwalk/a,y\nwalk/a/3.png,y\n")
    index = VideoSource.read_index(str(table), DataSpec(label="what"))
    assert index.classes == ("x", "y")
    assert (
        frames_of(VideoSource.for_evaluation(index, DataSpec(), ENCODER, 16), 2, None) == [24] * 8
    )  # one image, for all frames


def test_what_lies_beside_clips_is_none(tmp_path: Path) -> None:
    folder_of(tmp_path / "walk" / "a", RAMP)
    file_of(tmp_path / "run" / "b.mp4", RAMP)
    for place in (tmp_path / "cover.jpg", tmp_path / "walk" / "thumb.png", tmp_path / "run" / "poster.png"):
        Image.new("RGB", (16, 16)).save(place)
    (tmp_path / "walk" / "a" / "._3.png").write_bytes(b"of the file system")
    index = VideoSource.read_index(str(tmp_path), DataSpec())
    assert list(index.paths) == ["run/b.mp4", "walk/a"] and index.classes == ("run", "walk")
    assert frames_of(VideoSource.for_evaluation(index, DataSpec(), ENCODER, 16), 1, None)[0] == 0


def test_windows_suit_clips_of_different_lengths(tmp_path: Path) -> None:
    for number in range(16):
        folder_of(tmp_path / f"{number:02}", RAMP[: 8 + number % 8])
    video = VideoSource.open(DataSpec(data=str(tmp_path)))
    assert video.frames == 8 and not video.read(np.arange(16), ReadSeed(0, 0))[1]


def test_what_is_far_in_a_file_is_sought(tmp_path: Path) -> None:
    values = [(3 * number) % 250 for number in range(700)]
    file_of(tmp_path / "a.mp4", values)
    file_of(tmp_path / "b.mp4", values)
    index = VideoSource.read_index(str(tmp_path), DataSpec())
    frames = frames_of(VideoSource.for_evaluation(index, DataSpec(), ENCODER, 16), 0, None)
    expected = [values[round(place)] for place in np.linspace(0, 699, 8)]
    assert np.abs(np.array(frames) - expected).max() <= 6


def test_listed_folders_are_known_by_their_frames(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", RAMP)
    (tmp_path / "list.txt").write_text("a\n")
    before = VideoSource.read_index(str(tmp_path / "list.txt"), DataSpec())
    assert int(before.stamps[0, 0]) == sum(file.stat().st_size for file in (tmp_path / "a").iterdir())
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a" / "3.png")
    assert VideoSource.read_index(str(tmp_path / "list.txt"), DataSpec()).key() != before.key()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("short", "3 frames, expected 16 or more"), ("junk", "Error"), ("empty", "no image in it"), ("pipe", "is no file")],
)
def test_what_is_broken_has_a_reason(kind: str, reason: str, tmp_path: Path) -> None:
    for name in "abc":
        folder_of(tmp_path / name, RAMP)
    bad = tmp_path / "a"
    video = VideoSource.open(DataSpec(data=str(tmp_path)))
    for number in range(30):
        if kind == "empty" or (kind == "short" and number > 2):
            (bad / f"{number}.png").unlink()
        elif kind in ("junk", "pipe"):
            (bad / f"{number}.png").unlink()
            os.mkfifo(bad / f"{number}.png") if kind == "pipe" else (bad / f"{number}.png").write_bytes(b"no image")
    clips, broken = video.read(np.array([0, 1]), ReadSeed(0, 0))
    assert list(broken) == [0] and reason in broken[0]
    assert not clips["video"][0].any() and clips["video"][1].any()


def test_a_file_that_is_no_video_is_broken(tmp_path: Path) -> None:
    file_of(tmp_path / "a.mp4", RAMP)
    file_of(tmp_path / "b.mp4", RAMP)
    (tmp_path / "c.mp4").write_bytes(b"no video")
    whole = (tmp_path / "a.mp4").read_bytes()
    (tmp_path / "d.mp4").write_bytes(whole[: len(whole) // 2])
    _, broken = VideoSource.open(DataSpec(data=str(tmp_path))).read(np.arange(4), ReadSeed(0, 0))
    assert set(broken) == {2, 3}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{empty}", "no clip in"),
        ("{flat}", "holds frames and no clips"),
        ("{short}", "have 1 frame"),
        ("{junk}", "is a readable clip"),
    ],
)
def test_bad_input_is_one_line(data: str, message: str, sslkit: Run, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    folder_of(tmp_path / "flat", RAMP)
    for name in "ab":
        folder_of(tmp_path / "short" / name, RAMP[:1])
        (tmp_path / "junk").mkdir(exist_ok=True)
        (tmp_path / "junk" / f"{name}.mp4").write_bytes(b"no video")
    places = {name: tmp_path / name for name in ("empty", "flat", "short", "junk")}
    ran = sslkit("pretrain", "order_verification", "--data", data.format(**places), "--out", tmp_path / "run")
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert ran.code == 2 and len(errors) == 1 and message in errors[0]
    assert not (tmp_path / "run").exists()


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file_of(tmp_path / "a.mp4", RAMP)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SslkitError, match=r"sslkit\[video\]"):
        VideoSource.open(DataSpec(data=str(tmp_path)))


def test_from_clips_to_numbers(sslkit: Run, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(24):
        part = "train" if number < 16 else "test"
        values = [int(value) for value in np.clip(60 + 100 * (number % 2) + random.integers(0, 60, 12), 0, 255)]
        folder_of(tmp_path / "data" / part / ("dark", "light")[number % 2] / f"{number:02}", values)
    data, run = tmp_path / "data", tmp_path / "run"
    options = ["--size", 16, "--batch-size", 8, "--steps", 3, "--encoder-option", "width=8", "--workers", 0]
    ran = sslkit("pretrain", "order_verification", "--data", data, "--out", run, *options)
    assert ran.code == 0, ran.err
    checkpoint = run / "model.safetensors"
    rows = sslkit("knn", "--ckpt", checkpoint, "--k", 3, "--json").json["rows"]
    assert [row["model"] for row in rows] == ["checkpoint", "random weights", "raw pixels, 16 px"]
    assert rows[0]["metrics"][0]["n"] == 8 and rows[2]["metrics"][0]["value"] == 1
    assert sslkit("embed", "--ckpt", checkpoint, "--out", tmp_path / "features.npz", "--json").json["samples"] == 16
    preview = sslkit("preview", "order_verification", "--ckpt", checkpoint, "--out", tmp_path / "p.png", "--json").json
    assert set(preview["metrics"]) == {"accuracy"} and (tmp_path / "p.png").exists()
    assert sslkit("report", run, "--out", tmp_path / "report.html").code == 0
    assert sslkit("export", "--ckpt", checkpoint, "--out", tmp_path / "model.pt2").code == 0  # an encoder of images
    near = sslkit("search", "--ckpt", checkpoint, "--out", tmp_path / "near.png")
    assert near.code == 0 and near.out.startswith(("dark/", "light/"))
    for command, reason in (("finetune", "was trained on video data"), ("predict", "has no classifier")):
        ran = sslkit(command, "--ckpt", checkpoint)
        assert ran.code == 2 and reason in ran.err, command


def test_cached_clips_are_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    folder_of(tmp_path / "data" / "a", RAMP)
    file_of(tmp_path / "data" / "b.mp4", RAMP, size=(96, 32))
    plain = VideoSource.open(DataSpec(data=str(tmp_path / "data")))
    cached = VideoSource.open(DataSpec(data=str(tmp_path / "data"), cache="on"))
    assert plain.resolved["cache"][0] == "off" and cached.resolved["cache"][0] == "on"
    assert cached.cache_bytes() == 60 * cached.form.side**2 * 3
    expected = [plain.read(np.array([0, 1]), ReadSeed(0, epoch))[0] for epoch in range(3)]
    for epoch in range(3):
        arrays, broken = cached.read(np.array([0, 1]), ReadSeed(0, epoch))
        assert not broken and (arrays["aspect"] == expected[epoch]["aspect"]).all()
        assert (arrays["video"][0] == expected[epoch]["video"][0]).all()
        # Of the wide clip the cache holds the middle; all of its pixels have one value.
        assert np.abs(arrays["video"][1].astype(int) - expected[epoch]["video"][1]).max() <= 1
    for number in range(30):
        (tmp_path / "data" / "a" / f"{number}.png").unlink()
    assert not cached.read(np.array([0]), ReadSeed(0, 5))[1]


def test_caches_that_do_not_fit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKIT_CACHE", str(tmp_path / "cache"))
    for name in "ab":
        folder_of(tmp_path / "data" / name, RAMP)
    with pytest.raises(SslkitError, match=r"--cache: about 0.0 GB of frames exceed --cache-limit 1e-05"):
        VideoSource.open(DataSpec(data=str(tmp_path / "data"), cache="on", cache_limit=1e-5))
    with pytest.raises(SslkitError, match="--cache: there is no compact cache of video"):
        VideoSource.open(DataSpec(data=str(tmp_path / "data"), cache="compact"))


@pytest.mark.parametrize("suffix", [".mkv", ".mp4"])
def test_videos_that_are_shorter_than_they_say_end_with_their_last_frame(tmp_path: Path, suffix: str) -> None:
    file_of(tmp_path / f"a{suffix}", [2 * number for number in range(100)])
    index = VideoSource.read_index(str(tmp_path), DataSpec())
    with open_clip(index, 0) as clip:
        frames = clip.frames(np.array([3, 99, 110, 180]), CanvasFormat(16)).canvases
    assert np.abs(frames.mean(axis=(1, 2, 3)) - [6, 198, 198, 198]).max() < 1.5
