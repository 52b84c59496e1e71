"""curate: near duplicates, outliers, balanced and diverse selections by loops, and tables that --data takes."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sslkit import CurateSpec
from sslkit.evaluation.curate import choose, compare_all, farthest

Run = Callable[..., Any]


def unit(count: int, width: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), dim=1)


def test_duplicates_are_of_samples_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.evaluation.curate._CHUNK", 40)  # a few rows at a time
    angle = torch.tensor([0.0, 2.0, 0.05, 0.10, 4.0, 2.01, 0.09])  # 3 is near 2, which is near 0; 6 is nearer to 3 than to 0
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    twin, cosine, typicality = compare_all(features, 0.998, 2)
    assert twin.tolist() == [-1, -1, 0, -1, -1, 1, 3]
    for row in range(7):
        others = [float(features[row] @ features[other]) for other in range(7) if other != row]
        assert typicality[row] == pytest.approx(np.mean(sorted(others)[-2:]), abs=1e-5)
        if twin[row] >= 0:
            assert cosine[row] == pytest.approx(float(features[row] @ features[twin[row]]), abs=1e-5)
    assert (compare_all(features, 1.0, 2)[0] == -1).all()


def test_the_farthest_is_chosen_next() -> None:
    features, chosen = unit(30), [int((unit(30) @ unit(30).mean(dim=0)).argmax())]
    while len(chosen) < 8:
        nearest = [max(float(features[row] @ features[place]) for place in chosen) for row in range(30)]
        chosen.append(int(np.argmin(nearest)))
    assert farthest(features, 8).tolist() == chosen


def test_clusters_are_equally_many_as_far_as_they_go() -> None:
    clusters = np.array([0] * 20 + [1] * 3 + [2] * 10)
    for keep, expected in ((0.5, [7, 3, 6]), (1.0, [20, 3, 10]), (0.2, [2, 2, 3]), (0.75, [12, 3, 10])):
        chosen = choose(unit(33), clusters, CurateSpec(ckpt="x", keep=keep))
        counts = np.bincount(clusters[chosen], minlength=3)
        assert len(set(chosen.tolist())) == len(chosen) == round(33 * keep)
        assert sorted(counts.tolist()) == sorted(expected)


@pytest.fixture
def images(digits: Path, tmp_path: Path) -> Path:
    """Copy the digits, with two copies of one and an image of another kind."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, file in enumerate(sorted((digits / "train").rglob("*.png"))):
        with Image.open(file) as image:
            image.save(folder / f"{number:03}.png")
    with Image.open(folder / "000.png") as image:
        image.save(folder / "twin.png")
        image.point(lambda value: min(255, value + 1)).save(folder / "near.png")
    return folder


def read(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_tables_of_digits(trained: Path, images: Path, sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "chosen.csv"
    words = ["curate", "--ckpt", trained, "--data", images, "--duplicates", 0.9995, "--clusters", 4, "--out", out]
    result = sslkit(*words, "--outliers", 0.1, "--keep", 0.5, "--json").json
    kept, left_out = read(out), read(tmp_path / "chosen.left-out.csv")
    assert len(kept) == result["kept"] and len(kept) + len(left_out) == result["samples"] == len(list(images.iterdir()))
    duplicates = {
        Path(row["path"]).name: Path(row["duplicate of"]).name for row in left_out if row["reason"] == "near duplicate"
    }
    assert duplicates["twin.png"] == "000.png" and duplicates["near.png"] == "000.png"
    assert {row["reason"] for row in left_out} == {"near duplicate", "outlier", "not chosen"}
    typical = [float(row["typicality"]) for row in [*kept, *left_out] if row.get("reason") != "near duplicate"]
    outliers = [float(row["typicality"]) for row in left_out if row["reason"] == "outlier"]
    assert sorted(typical)[: len(outliers)] == sorted(outliers)
    assert {row["cluster"] for row in kept} <= set("0123") and len({row["cluster"] for row in kept}) == 4
    flags = ["--steps", 2, "--batch-size", 8, "--size", 16, "--encoder-option", "width=8", "--out", tmp_path / "run"]
    assert sslkit("pretrain", "rotation", "--data", out, *flags).code == 0
    assert sslkit(*words, "--outliers", 0.1, "--keep", 0.5, "--json").json == result
    ran = sslkit(*words, "--keep", 0.4, "--select", "diverse")
    assert ran.code == 0 and "kept" in ran.out and "near duplicate" in ran.out


def test_what_is_refused(trained: Path, sslkit: Run, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((20, 16, 16, 3), dtype=np.uint8))
    ran = sslkit("curate", "--ckpt", trained, "--data", tmp_path / "images.npy", "--out", tmp_path / "c.csv")
    assert ran.code == 2 and "are no files of their own" in ran.err and not (tmp_path / "c.csv").exists()
