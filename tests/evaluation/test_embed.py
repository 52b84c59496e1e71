"""Features to take elsewhere and to look at: embed, map, search."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sslkit import load
from sslkit.reporting.projection import project

Run = Callable[..., Any]


def test_embed_writes_features_paths_and_labels(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    import torch

    out = tmp_path / "features.npz"
    ran = sslkit("embed", "--ckpt", trained, "--data", digits / "test", "--out", out, "--json")
    assert ran.json["samples"] == 12 and ran.json["labels"] is True
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["features"].shape == (12, 64) and arrays["features"].dtype == np.float32
        assert arrays["labels"].tolist() == [path.split("/")[0] for path in arrays["paths"].tolist()]
        image = np.array(Image.open(digits / "test" / str(arrays["paths"][3])).convert("RGB"))
        with torch.no_grad():
            expected = load(trained)(torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255)
        np.testing.assert_allclose(arrays["features"][3], expected[0].numpy(), rtol=1e-4, atol=1e-5)


def test_embed_without_labels_and_of_a_layer(trained: Path, digits: Path, tmp_path: Path, sslkit: Run) -> None:
    out = tmp_path / "features.npz"
    ran = sslkit("embed", "--ckpt", trained, "--data", digits / "test" / "digit 0", "--layer", 2, "--out", out)
    assert ran.code == 0, ran.err
    with np.load(out, allow_pickle=False) as arrays:
        assert set(arrays.files) == {"features", "paths"} and arrays["features"].shape == (4, 16)


@pytest.mark.parametrize(
    ("command", "flags", "message"),
    [
        ("embed", ["--out", "features.csv"], "should end in .npz or .npy or .parquet"),
        ("map", ["--out", "nowhere/map.png"], "nowhere does not exist"),
        ("search", ["--out", "x.jpg"], "should end in .png"),
        ("search", ["--k", "48"], "48 neighbors exceed the 47 other images (use 1 to 47)"),
        ("search", ["missing.png"], "missing.png is not a file (rotation was trained on images"),
    ],
)
def test_what_cannot_be_drawn(
    command: str,
    flags: list[str],
    message: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    sslkit: Run,
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = sslkit(command, "--ckpt", trained, *flags)
    assert ran.code == 2 and message in ran.err and not list(tmp_path.iterdir()), ran.err


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_map(method: str, trained: Path, tmp_path: Path, sslkit: Run) -> None:
    out = tmp_path / "map.png"
    ran = sslkit("map", "--ckpt", trained, "--method", method, "--out", out, "--json")
    assert ran.json["samples"] == 48
    with Image.open(out) as picture:
        assert np.asarray(picture.convert("L")).std() > 5


def test_project_keeps_groups_apart() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(20, 8)) + 9 * np.eye(8)[place] for place in (0, 4)]).astype(np.float32)
    places, _ = project(features, "pca", seed=0)
    assert abs(places[:20, 0].mean() - places[20:, 0].mean()) > 4 * places[:20, 0].std()


def test_neighbors_of_images(trained: Path, digits: Path, tmp_path: Path, sslkit: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    query = sorted((digits / "train" / "digit 1").iterdir())[0]
    result = sslkit("search", query, "--ckpt", trained, "--k", 3, "--json").json
    (near,) = result["neighbors"].values()
    assert near[0][0] == f"digit 1/{query.name}" and near[0][1] == pytest.approx(1, abs=1e-4)
    with Image.open(tmp_path / "search.png") as picture:
        assert picture.width > 4 * 96
    eight = ["search", "--ckpt", trained, "--k", 3, "--out", tmp_path / "eight.png", "--json"]
    sampled = sslkit(*eight).json
    assert sslkit(*eight, "--approximate").json["neighbors"] == sampled["neighbors"]
    assert len(sampled["neighbors"]) == 8
    assert all(name not in [other for other, _ in near] for name, near in sampled["neighbors"].items())
