"""correspond: known changes of view, matches of planted features, and what the command measures, draws and refuses."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from sslkit.image.correspond import Matcher, project, random_homography, warp

Run = Callable[..., Any]


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Return the checkpoint in a folder of its own: results are written beside it."""
    return Path(shutil.copy(trained, tmp_path))


def test_a_homography_takes_corners_where_they_belong() -> None:
    homography = random_homography(np.random.default_rng(0), 0.2)
    random, corners = np.random.default_rng(0), torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    moved = corners.numpy() + 0.2 * (2 * random.random((4, 2)) - 1)
    assert np.allclose(project(homography, corners).numpy(), moved, atol=1e-5)
    inverse = torch.linalg.inv(homography)
    points = torch.rand(50, 2)
    assert torch.allclose(project(inverse, project(homography, points)), points, atol=1e-4)


def test_a_warped_image_shows_what_the_homography_says() -> None:
    ramp = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")).flip(0).add(0.5) / 64
    image, homography = torch.cat([ramp, torch.ones(1, 64, 64)]), random_homography(np.random.default_rng(1), 0.15)
    warped = warp(image, homography, torch.ones(2))  # each pixel tells where it comes from
    at = torch.stack(torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij"), dim=2).flip(2).add(0.5) / 64
    true = project(homography, at.view(-1, 2)).view(64, 64, 2)
    inside = ((true > 0.02) & (true < 0.98)).all(dim=2)
    assert inside.float().mean() > 0.5
    assert (warped[:2].permute(1, 2, 0) - true)[inside].abs().max() < 1e-3
    darker = warp(image, homography, torch.tensor([1.0, 0.5]))
    assert torch.allclose(darker, 0.5 * warped, atol=1e-6)


def test_places_that_know_where_they_are_match_exactly() -> None:
    """Pixels that tell their position as a direction are nearest to the true one."""
    angle = torch.stack(torch.meshgrid(torch.linspace(0, 3, 48), torch.linspace(0, 3, 48), indexing="ij"))
    image = torch.cat([angle.sin(), angle.cos()]) / 2 + 0.5
    homography = random_homography(np.random.default_rng(2), 0.1)
    matcher = Matcher("planted", "checkpoint", 48, lambda pictures: 2 * pictures - 1)
    nearest, true, inside = matcher.match(image, warp(image, homography, torch.ones(2)), homography)
    away_from_edges = inside & ((true > 0.03) & (true < 0.97)).all(dim=1)
    assert (nearest - true)[away_from_edges].norm(dim=1).max() < 1.5 / 48
    same, _, _ = Matcher("same", "other", 48, None).match(image, image, torch.eye(3))
    assert torch.allclose(same, torch.tensor([[x, y] for y in (1 / 6, 0.5, 5 / 6) for x in (1 / 6, 0.5, 5 / 6)]))


def test_digits_are_matched(checkpoint: Path, digits: Path, sslkit: Run, tmp_path: Path) -> None:
    out = tmp_path / "matches.png"
    words = ["correspond", "--ckpt", checkpoint, "--data", digits, "--samples", 12, "--resolution", 64, "--batch-size", 4]
    result = sslkit(*words, "--out", out, "--json").json
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["checkpoint", "random weights", "colors of patches", "the same place"]
    assert all(row["metrics"][0]["n"] == 12 and 0 <= row["metrics"][0]["value"] <= 1 for row in rows.values())
    assert rows["the same place"]["metrics"][1]["value"] < 0.2  # corners move by 0.2 at most
    assert set(rows["random weights"]["comparisons"]) == {"checkpoint"} and result["protocol"] is None
    with Image.open(out) as picture:
        assert picture.size == (2 * 64 + 24, 4 * 72 + 8)
    assert sslkit(*words, "--json").json["rows"] == result["rows"]
    other = sslkit(*words, "--seed", 1, "--json").json["rows"]
    assert other[3]["metrics"][1]["value"] != result["rows"][3]["metrics"][1]["value"]


def test_without_a_change_of_view_everything_matches(checkpoint: Path, digits: Path, sslkit: Run) -> None:
    words = ["--samples", 4, "--resolution", 64, "--strength", 1e-6, "--jitter", 0, "--no-baselines", "--json"]
    (row,) = sslkit("correspond", "--ckpt", checkpoint, "--data", digits, *words).json["rows"]
    assert row["metrics"][0]["value"] == pytest.approx(1.0, abs=0.03)


def test_what_is_refused(checkpoint: Path, digits: Path, sslkit: Run) -> None:
    ran = sslkit("correspond", "--ckpt", checkpoint, "--data", digits, "--layer", 9, "--samples", 2)
    assert ran.code == 2 and "has 4 layers (got 9)" in ran.err
    ran = sslkit("correspond", "--ckpt", checkpoint, "--data", digits, "--strength", 0.9)
    assert ran.code == 2 and "--strength" in ran.err
