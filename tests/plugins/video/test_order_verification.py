"""order_verification: the sampled frames, the loss, and that it learns."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from sslkit import DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def order_verification(frames: int = 16, **options: Any) -> Any:
    task_class = load_task("order_verification")
    data = DataInfo(8, 16, 3, "video", {"frames": frames})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


@pytest.mark.parametrize("frames", [5, 6, 12, 16])
def test_five_frames_in_order_as_far_apart_as_the_paper_says(frames: int) -> None:
    a, b, c, d, e = order_verification(frames).tuples.unbind(1)
    assert len(a) and len(set(map(tuple, order_verification(frames).tuples.tolist()))) == len(a)
    assert ((a < b) & (b < c) & (c < d) & (d < e)).all() and (a >= 0).all() and (e < frames).all()
    away = max(1, round(frames * 15 / 96))
    assert ((b - a >= away) & (e - d >= away) & (d - b <= max(2, round(frames * 60 / 96)))).all()


def test_frames_of_a_clip_are_cropped_alike_and_may_run_backwards() -> None:
    task = order_verification()
    still = torch.rand(64, 1, 3, 20, 20).expand(-1, 16, -1, -1, -1)
    batch = task.transform({"video": still, "aspect": torch.ones(64)})
    assert batch["image"].shape == (64, 5, 3, 16, 16)
    assert torch.allclose(batch["image"], batch["image"][:, :1].expand(-1, 5, -1, -1, -1), atol=1e-6)
    assert not batch["valid"].any()  # nothing moves: shuffled triples are indistinguishable from ordered ones
    ramp = (torch.arange(16) / 16).view(1, 16, 1, 1, 1).expand(64, 16, 3, 20, 20)
    batch = task.transform({"video": ramp, "aspect": torch.ones(64)})
    means = batch["image"].mean(dim=(2, 3, 4))
    forwards = (means.diff(dim=1) > 0).all(dim=1)
    assert (forwards | (means.diff(dim=1) < 0).all(dim=1)).all() and 10 < int(forwards.sum()) < 54
    assert batch["valid"].all()


def test_loss_against_a_loop() -> None:
    task = order_verification(in_order=0.25)
    output = torch.randn(4, 3, 2)
    valid = torch.tensor([[True, True], [True, False], [False, False], [False, True]])
    right = sum(F.cross_entropy(output[i, :1], torch.tensor([0])) for i in range(4))
    wrong = sum(F.cross_entropy(output[i, 1 + k : 2 + k], torch.tensor([1])) for i in range(4) for k in range(2) if valid[i, k])
    batch = {"valid": valid}
    terms, counts = task.loss(output, batch), task.counts(batch)
    assert torch.allclose(terms["in_order"] / counts["in_order"], 0.25 * right / 4)
    assert torch.allclose(terms["shuffled"] / counts["shuffled"], 0.75 * wrong / 4)
    ordered = output[..., 0] > output[..., 1]
    for i in range(4):
        rejected = [not ordered[i, 1 + k] for k in range(2) if valid[i, k]]
        expected = (float(ordered[i, 0]) + (sum(rejected) / len(rejected) if rejected else 0.5)) / 2
        assert float(task.metrics(output, batch)["accuracy"][i]) == pytest.approx(expected)


@pytest.mark.slow
def test_it_learns_the_temporal_order(sslkit: Callable[..., Any], tmp_path: Path) -> None:
    """Squares that move in straight lines: on held-out clips, most triples are classified correctly."""
    random = np.random.default_rng(0)
    for number in range(220):
        part = "train" if number < 160 else "test"
        folder = tmp_path / "data" / part / f"{number:03}"
        folder.mkdir(parents=True)
        begin, end = random.uniform(0, 10, 2), random.uniform(0, 10, 2)
        while np.abs(end - begin).max() < 5:
            end = random.uniform(0, 10, 2)
        for frame in range(8):
            top, left = (begin + (end - begin) * frame / 7).round().astype(int)
            picture = np.zeros((16, 16, 3), dtype=np.uint8)
            picture[top : top + 6, left : left + 6] = 255
            Image.fromarray(picture).save(folder / f"{frame}.png")
    data, run = tmp_path / "data", tmp_path / "run"
    options = ["--size", 16, "--steps", 500, "--encoder-option", "width=8", "--workers", 0, "--crop-scale", 0.9]
    assert sslkit("pretrain", "order_verification", "--data", data, "--out", run, *options).code == 0
    result = sslkit(
        "preview", "--ckpt", run / "model.safetensors", "--data", data / "test", "--out", tmp_path / "p.png", "--json"
    ).json
    assert result["metrics"]["accuracy"] > 0.75
