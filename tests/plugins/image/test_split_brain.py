"""split_brain: who sees what, and what is kept."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import DataInfo, load
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task
from tests.canvases import canvases


def task() -> Any:
    task_class = load_task("split_brain")
    data = DataInfo(64, 32)
    options = task_class.Options()
    encoder = task_class.build_encoder(options, RecipeBuilder(recipe_for("resnet_micro", 32), data))
    return task_class(options, encoder, data)


def test_each_half_depends_on_its_channels_only() -> None:
    made = task().eval()
    gray = torch.rand(2, 1, 32, 32).expand(-1, 3, -1, -1)
    batch = made.transform(canvases(torch.rand(2, 3, 32, 32)))
    first, other = (made.predict({**batch, "image": image}) for image in (gray, gray * 0.5))
    assert torch.allclose(first["lightness"], other["lightness"], atol=1e-3)  # no color in either
    assert not torch.allclose(first["color"], other["color"], atol=1e-3)
    assert first["color"].shape == (2, 261, 4, 4) and first["lightness"].shape == (2, 100, 4, 4)
    assert batch["color"].shape == batch["lightness"].shape == (2, 4, 4)


def test_targets_are_the_bins_of_the_picture() -> None:
    made = task()
    red = torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 32, 32)
    batch = made.transform(canvases(red))
    assert (batch["lightness"] == 53).all()  # L* of sRGB red is 53.2, a 80.1, b 67.2
    assert made.bins[batch["color"][0, 0, 0]].tolist() == [80.0, 70.0]


@pytest.mark.slow
def test_both_halves_are_kept(sslkit: Callable[..., Any], digits: Path, tmp_path: Path) -> None:
    settings = ["--data", digits, "--size", 16, "--batch-size", 16, "--steps", 3, "--workers", 0]
    ran = sslkit("pretrain", "split_brain", *settings, "--out", tmp_path / "run", "--json")
    encoder = load(str(ran.json["checkpoint"]))
    assert encoder.width == 128 and encoder(torch.rand(2, 3, 16, 16)).shape == (2, 128)
    assert encoder.recipe["concat"][0]["select"] == "l"
    checkpoint = ran.json["checkpoint"]
    assert sslkit("knn", "--ckpt", checkpoint, "--json").json["rows"][0]["metrics"][0]["n"] == 12
    assert sslkit("export", "--ckpt", checkpoint, "--to", "pt2").code == 0
    assert "l:resnet_micro+ab:resnet_micro is not a timm model" in sslkit("export", "--ckpt", checkpoint, "--to", "timm").err
    batch = ["--batch-size", 16, "--out", tmp_path / "tuned", "--json"]
    tuned = sslkit("finetune", "--ckpt", checkpoint, "--data", digits, "--epochs", 1, *batch)
    assert tuned.json["rows"][0]["metrics"][0]["n"] == 12


def test_no_color_no_task(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    import numpy as np

    np.save(tmp_path / "gray.npy", np.zeros((16, 32, 32), dtype=np.uint8))
    ran = sslkit("pretrain", "split_brain", "--data", tmp_path / "gray.npy", "--batch-size", 8)
    assert ran.code == 2 and "images with 1 channels have no color" in ran.err
    ran = sslkit("pretrain", "split_brain", "--data", tmp_path / "gray.npy", "--encoder", "mobilenetv3_small_100")
    assert ran.code == 2
