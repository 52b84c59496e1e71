"""Clips of several cameras: `--cameras all`."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.specs.data import DataSpec
from sslkit.video.source import VideoSource

LENGTH = 12


def write_clips(folder: Path, clips: int = 4, cameras: int = 3) -> Path:
    """Write frames whose gray value says their time, their camera by the channel that is lit, and a table of them."""
    table = [["path", "path2", "path3"][:cameras]]
    for clip in range(clips):
        table.append([f"{clip}-{camera}" for camera in range(cameras)])
        for camera, name in enumerate(table[-1]):
            (folder / name).mkdir(parents=True)
            for time in range(LENGTH):
                picture = np.zeros((16, 24 if camera else 16, 3), dtype=np.uint8)
                picture[..., camera] = 20 * time + clip
                Image.fromarray(picture).save(folder / name / f"{time}.png")
    with open(folder / "clips.csv", "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(table)
    return folder / "clips.csv"


def test_cameras_see_the_same_time(tmp_path: Path) -> None:
    table = write_clips(tmp_path)
    source = VideoSource.open(DataSpec(data=str(table), cameras="all", frames=4))
    assert source.info.details["cameras"] == 3
    for epoch in range(4):
        arrays, broken = source.read(np.arange(4), ReadSeed(0, epoch))
        assert not broken and arrays["cameras"].shape[:3] == (4, 2, 4)
        first = arrays["video"].mean(axis=(2, 3))  # [B, T, channels]
        others = arrays["cameras"].mean(axis=(3, 4))
        for camera in (1, 2):
            assert np.abs(others[:, camera - 1, :, camera] - first[..., 0]).max() < 1
            assert others[:, camera - 1, :, 0].max() < 1
        assert (arrays["aspect"] == 1).all() and np.allclose(arrays["cameras_aspect"], 1.5)
    alone = VideoSource.open(DataSpec(data=str(table), frames=4))
    assert "cameras" not in alone.info.details and set(alone.read(np.arange(1))[0]) == {"video", "aspect"}
    assert alone.fingerprint() != source.fingerprint()


def test_a_camera_that_stops_before_is_reported(tmp_path: Path) -> None:
    table = write_clips(tmp_path)
    for time in range(4, LENGTH):
        (tmp_path / "1-2" / f"{time}.png").unlink()
    source = VideoSource.open(DataSpec(data=str(table), cameras="all", frames=6))
    _, broken = source.read(np.arange(4), ReadSeed(0, 0))
    assert list(broken) == [1] and broken[1] == "1-2 has 4 frames, fewer than that of column path"


def test_cameras_have_one_frame_rate(tmp_path: Path) -> None:
    for name, rate in (("a0", 10), ("a1", 20), ("b0", 10), ("b1", 10)):
        with av.open(str(tmp_path / f"{name}.mp4"), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for value in range(20):
                picture = np.full((32, 32, 3), 10 * value, dtype=np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
    table = tmp_path / "clips.csv"
    table.write_text("path,path2\na0.mp4,a1.mp4\nb0.mp4,b1.mp4\n")
    source = VideoSource.open(DataSpec(data=str(table), cameras="all", frames=4))
    _, broken = source.read(np.arange(2), ReadSeed(0, 0))
    assert broken == {0: "a1.mp4 has 20 frames a second, that of column path 10"}
    before = source.fingerprint()
    with open(tmp_path / "b1.mp4", "ab") as stream:
        stream.write(bytes(100))
    assert VideoSource.open(DataSpec(data=str(table), cameras="all", frames=4)).fingerprint() != before


def test_tables_without_other_cameras_and_caches_are_refused(tmp_path: Path) -> None:
    table = write_clips(tmp_path, cameras=1)
    for data in (table, tmp_path):
        with pytest.raises(SslkitError, match=r"--cameras: .* has one video a row .expected a \.csv with columns path, path2"):
            VideoSource.open(DataSpec(data=str(data), cameras="all"))
    table = write_clips(tmp_path / "several")
    with pytest.raises(SslkitError, match="--cache: clips of several cameras are not cached"):
        VideoSource.open(DataSpec(data=str(table), cameras="all", cache="on"))


def test_tasks_that_have_no_use_for_other_cameras_or_poses_say_so(tmp_path: Path, sslkit: Callable[..., Any]) -> None:
    table = write_clips(tmp_path)
    how = ["--batch-size", 2, "--workers", 0, "--steps", 1]
    refused = sslkit("pretrain", "odd_one_out", "--data", table, "--cameras", "all", *how, "--out", tmp_path / "a")
    assert refused.code == 2 and "--cameras: odd_one_out uses no cameras" in refused.err
    for folder in tmp_path.glob("*-*"):
        (folder / "poses.csv").write_text("\n".join("0,1" for _ in range(LENGTH)))
    refused = sslkit("pretrain", "odd_one_out", "--data", table, "--poses", "poses.csv", *how, "--out", tmp_path / "a")
    assert refused.code == 2 and "--poses: odd_one_out uses no pose" in refused.err
    ran = sslkit("pretrain", "time_contrastive", "--data", table, "--cameras", "all", *how, "--out", tmp_path / "b")
    assert ran.code == 0, ran.err
    evaluated = sslkit("embed", "--ckpt", tmp_path / "b" / "model.safetensors", "--out", tmp_path / "features.npz")
    assert evaluated.code == 0, evaluated.err
