"""curate: near duplicates, outliers, balanced and diverse selections by loops, and tables that --data takes."""

import csv
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sslkit import CurateSpec
from sslkit.evaluation.curate import choose, farthest
from sslkit.evaluation.duplicates import find_neighbors, find_twins, first_of_equals
from sslkit.evaluation.label_errors import judge_labels
from sslkit.image.copies import detail_correlation, gray_thumbnails

Run = Callable[..., Any]


def unit(count: int, width: int = 6) -> torch.Tensor:
    return F.normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), dim=1)


def cosines(features: torch.Tensor) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    return lambda first, second: (features[first] * features[second]).sum(dim=1)


def test_neighbors_are_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.evaluation.knn._CHUNK", 40)  # a few rows at a time
    features = unit(17)
    neighbors = find_neighbors(features, 3)
    for row in range(17):
        others = sorted((float(features[row] @ features[other]), other) for other in range(17) if other != row)[::-1]
        assert neighbors.places[row].tolist() == [other for _, other in others[:3]]
        assert neighbors.cosines[row].tolist() == pytest.approx([value for value, _ in others[:3]], abs=1e-5)
    assert find_neighbors(features[:3], 10).places.shape == (3, 2)


def test_duplicates_are_of_samples_that_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sslkit.evaluation.duplicates._PAIRS", 4)
    angle = torch.tensor([0.0, 2.0, 0.05, 0.10, 4.0, 2.01, 0.09])  # 3 is near 2, which is near 0; 6 is nearer to 3 than to 0
    features = torch.stack([angle.cos(), angle.sin()], dim=1)
    twin, likeness = find_twins(find_neighbors(features, 3), cosines(features), 0.998)
    assert twin.tolist() == [-1, -1, 0, -1, -1, 1, 3]
    for row in np.flatnonzero(twin >= 0):
        assert likeness[row] == pytest.approx(float(features[row] @ features[twin[row]]), abs=1e-5)


def test_equal_samples_are_those_of_the_first() -> None:
    assert first_of_equals(np.array([5, 3, 5, 9, 3, 5])).tolist() == [0, 1, 0, 3, 1, 0]


def test_copies_are_told_from_images_that_look_alike() -> None:
    random = torch.Generator().manual_seed(0)
    shade = F.interpolate(torch.rand(1, 3, 3, 3, generator=random), size=34, mode="bicubic").clamp(0, 1)
    image = (0.7 * shade + 0.2 * torch.rand(1, 3, 34, 34, generator=random)).clamp(0, 1)
    other = (0.7 * shade + 0.2 * torch.rand(1, 3, 34, 34, generator=random)).clamp(0, 1)  # the same light and shade
    shifted, darker = image[..., 2:, 1:-1], 0.8 * image[..., 1:-1, 1:-1]
    noisy = image[..., 1:-1, 1:-1] + 0.01 * torch.randn(1, 3, 32, 32, generator=random)
    pictures = [image[..., 1:-1, 1:-1], shifted, darker, noisy.clamp(0, 1), other[..., 1:-1, 1:-1], torch.zeros(1, 3, 32, 32)]
    small = torch.cat([gray_thumbnails(picture) for picture in pictures])
    likeness = detail_correlation(small[:1].expand_as(small), small)
    assert likeness[0] == pytest.approx(1, abs=1e-5)
    assert (likeness[1:4] > 0.95).all() and likeness[4] < 0.5 and likeness[5] == 0


def test_labels_that_the_neighbors_contradict() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 300)
    features = F.normalize(torch.eye(3)[labels] + 0.2 * torch.randn(300, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    changed = labels.copy()
    planted = random.permutation(300)[:30]
    changed[planted] = (labels[planted] + 1) % 3
    order, plausible, likeliest = judge_labels(find_neighbors(features, 10), changed, 3)
    assert len(np.intersect1d(order[:30], planted)) >= 27
    assert (likeliest[planted] == labels[planted]).mean() > 0.9 and (likeliest != changed).all()
    assert (np.diff(plausible[order]) >= 0).all()
    row = int(planted[0])
    neighbors = find_neighbors(features, 10)
    weights = np.exp((neighbors.cosines[row] - neighbors.cosines[row, 0]).numpy() / 0.07)
    same = changed[neighbors.places[row].numpy()] == changed[row]
    assert plausible[row] == pytest.approx(weights[same].sum() / weights.sum(), abs=1e-6)


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


def copies(rows: list[dict[str, str]], reason: str) -> dict[str, str]:
    """Return the original of each copy, by file names."""
    return {Path(row["path"]).name: Path(row["duplicate of"]).name for row in rows if row["reason"] == reason}


def test_copies_of_images_are_those_whose_details_match(trained: Path, images: Path, sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "chosen.csv"
    words = ["curate", "--ckpt", trained, "--data", images, "--out", out]
    assert sslkit(*words).code == 0
    left_out = read(tmp_path / "chosen.left-out.csv")
    assert (
        copies(left_out, "duplicate") == {"twin.png": "000.png"} and copies(left_out, "near duplicate")["near.png"] == "000.png"
    )
    assert all(float(row["likeness"]) >= 0.9 for row in left_out)
    assert sslkit(*words, "--duplicates", 1).code == 0 and not read(tmp_path / "chosen.left-out.csv")


def test_a_wrong_label_is_suggested_another(trained: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    folder, out = tmp_path / "labeled", tmp_path / "chosen.csv"
    shutil.copytree(digits / "train", folder)
    shutil.move(folder / "digit 0" / "05.png", folder / "digit 1" / "wrong.png")
    words = [
        "curate",
        "--ckpt",
        trained,
        "--data",
        folder,
        "--duplicates",
        1,
        "--neighbors",
        5,
        "--label-errors",
        0.05,
        "--out",
        out,
    ]
    assert sslkit(*words).code == 0
    rows = {Path(row["path"]).name: row for row in read(tmp_path / "chosen.left-out.csv")}
    assert rows["wrong.png"]["reason"] == "label" and rows["wrong.png"]["suggested label"] == "digit 0"
    assert rows["wrong.png"]["label"] == "digit 1" and len(rows) == 2
    ran = sslkit(*words[:3], "--data", tmp_path / "labeled" / "digit 0", "--label-errors", 0.1, "--out", out)
    assert ran.code == 2 and "--label-errors" in ran.err


def test_tables_of_digits(trained: Path, images: Path, sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "chosen.csv"
    words = ["curate", "--ckpt", trained, "--data", images, "--duplicates", 0.9995, "--clusters", 4, "--out", out]
    result = sslkit(*words, "--outliers", 0.1, "--keep", 0.5, "--json").json
    kept, left_out = read(out), read(tmp_path / "chosen.left-out.csv")
    assert len(kept) == result["kept"] and len(kept) + len(left_out) == result["samples"] == len(list(images.iterdir()))
    assert (
        copies(left_out, "duplicate")["twin.png"] == "000.png" and copies(left_out, "near duplicate")["near.png"] == "000.png"
    )
    assert {row["reason"] for row in left_out} == {"duplicate", "near duplicate", "outlier", "not chosen"}
    typical = [float(row["typicality"]) for row in [*kept, *left_out] if "duplicate" not in row.get("reason", "")]
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
