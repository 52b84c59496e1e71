"""Point clouds as a source, their encoder and its baseline, and the commands on them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from sslkit.contract.source import ReadSeed
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.points.baselines import OccupancyGrid
from sslkit.points.source import PointSource
from sslkit.specs.data import DataSpec

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return balls and rods in class folders."""
    folder, random = tmp_path_factory.mktemp("shapes"), np.random.default_rng(0)
    for part, count in (("train", 24), ("test", 10)):
        for name, scale in (("ball", (1, 1, 1)), ("rod", (0.1, 0.1, 1))):
            place = folder / part / name
            place.mkdir(parents=True)
            for number in range(count):
                points = random.normal(size=(200, 3))
                points *= scale / np.linalg.norm(points, axis=1, keepdims=True)
                np.save(place / f"{number}.npy", 5 * points.astype(np.float32) + 7)
    return folder


def test_clouds_lie_in_the_unit_ball(shapes: Path) -> None:
    source = PointSource.open(DataSpec(data=str(shapes)))
    assert (source.info.samples, source.info.size, source.info.channels) == (48, 200, 3)
    rows = np.arange(4)
    first, again, other = (source.read(rows, ReadSeed(0, epoch))[0]["points"] for epoch in (0, 0, 1))
    assert np.array_equal(first, again) and not np.array_equal(first, other)
    assert np.allclose(np.sort(first, axis=1), np.sort(other, axis=1))  # all points, in another order
    norms = np.linalg.norm(first, axis=2)
    assert norms.max() == pytest.approx(1, abs=1e-5) and np.abs(first.max(axis=1) + first.min(axis=1)).max() < 1e-5


def test_the_order_of_points_does_not_matter() -> None:
    encoder = build_encoder(recipe_for("pointnet_micro", 64, 3, {"width": "8"})).eval()
    points = torch.rand(2, 50, 3) * 2 - 1
    order = torch.randperm(50)
    assert encoder(points).shape == (2, encoder.width)
    assert torch.allclose(encoder(points), encoder(points[:, order]), atol=1e-6)
    assert torch.allclose(encoder.tokens(points)[:, order], encoder.tokens(points[:, order]), atol=1e-5)
    grid = OccupancyGrid(3, 2)
    corners = torch.tensor([[[-0.5, -0.5, -0.5], [0.5, 0.5, 0.5], [0.5, 0.5, 0.9], [1.0, 1.0, 1.0]]])
    assert grid(corners).tolist() == [[0.25, 0, 0, 0, 0, 0, 0, 0.75]]


def test_commands_on_point_clouds(shapes: Path, tmp_path: Path, sslkit: Run) -> None:
    run = tmp_path / "run"
    flags = ["--encoder-option", "width=8", "--point-count", 64, "--batch-size", 8, "--steps", 6, "--health-every", 3]
    ran = sslkit("pretrain", "point_contrast", "--data", shapes, *flags, "--out", run)
    assert ran.code == 0, ran.err
    checkpoint = run / "model.safetensors"
    for verb in ("knn", "probe"):
        rows = sslkit(verb, "--ckpt", checkpoint, "--json").json["rows"]
        assert [row["model"] for row in rows] == ["checkpoint", "random weights", "occupancy, 8×8×8 cells"]
        assert rows[0]["metrics"][0]["value"] > 0.9
    assert sslkit("preview", "point_contrast", "--ckpt", checkpoint, "--out", tmp_path / "p.png").code == 0
    assert sslkit("search", "--ckpt", checkpoint, "--k", 2, "--out", tmp_path / "n.png").code == 0
    assert (tmp_path / "n.png").exists()
    flags = ["--data", shapes, "--epochs", 1, "--batch-size", 8, "--out", tmp_path / "tuned"]
    tuned = sslkit("finetune", "--ckpt", checkpoint, *flags)
    assert tuned.code == 0, tuned.err


def test_broken_clouds_are_skipped_and_named(tmp_path: Path, sslkit: Run) -> None:
    folder = tmp_path / "clouds"
    folder.mkdir()
    for number in range(12):
        np.save(folder / f"{number}.npy", np.random.default_rng(number).normal(size=(80, 3)))
    (folder / "broken.npy").write_bytes(b"no array")
    np.save(folder / "point.npy", np.zeros((80, 3)))
    flags = ["--encoder-option", "width=8", "--batch-size", 4, "--steps", 4, "--max-broken", 0.5]
    ran = sslkit("pretrain", "point_contrast", "--data", folder, *flags, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    broken = (tmp_path / "run" / "broken.csv").read_text()
    assert "broken.npy" in broken and "point.npy,all points are in one place" in broken
    ran = sslkit("pretrain", "point_contrast", "--data", folder, "--point-features", 2, "--out", tmp_path / "no")
    assert ran.code == 2 and "0 values beside the coordinates, expected 2" in ran.err, ran.err
    assert sslkit("pretrain", "point_contrast", "--data", folder, "--size", 32).code == 2


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_arrays_of_many_clouds(suffix: str, tmp_path: Path, sslkit: Run) -> None:
    file, random = tmp_path / f"many{suffix}", np.random.default_rng(0)
    labels = np.arange(24) % 2
    points = random.normal(size=(24, 50, 3)) * np.where(labels, 1, 0.1)[:, None, None] ** np.array([1, 1, 0])
    arrays = {"train_points": points[:16], "train_labels": labels[:16], "test_points": points[16:], "test_labels": labels[16:]}
    if suffix == ".npz":
        np.savez(file, **arrays)
    else:
        with h5py.File(file, "w") as content:
            for name, values in arrays.items():
                content[name] = values
    run = tmp_path / "run"
    flags = ["--encoder-option", "width=8", "--batch-size", 4, "--steps", 4, "--health-every", 0, "--out", run]
    ran = sslkit("pretrain", "point_contrast", "--data", file, *flags)
    assert ran.code == 0 and "has train and test" in ran.err, ran.err
    rows = sslkit("knn", "--ckpt", run / "model.safetensors", "--k", 3, "--json").json["rows"]
    assert rows[0]["metrics"][0]["value"] == 1 and rows[0]["metrics"][0]["n"] == 8


def test_an_array_without_clouds(tmp_path: Path, sslkit: Run) -> None:
    np.savez(tmp_path / "a.npz", first=np.zeros((4, 3)), second=np.zeros(4))
    ran = sslkit("pretrain", "point_contrast", "--data", tmp_path / "a.npz", "--out", tmp_path / "run")
    assert ran.code == 2 and "has no array `points` (arrays: first, second)" in ran.err and not (tmp_path / "run").exists()
    np.save(tmp_path / "flat.npy", np.zeros((4, 3)))
    ran = sslkit("pretrain", "point_contrast", "--data", tmp_path / "flat.npy", "--out", tmp_path / "run")
    assert ran.code == 2 and "row 0: shape (3,), expected [points, 3]" in ran.err, ran.err
