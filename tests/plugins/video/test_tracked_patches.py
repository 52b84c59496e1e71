"""tracked_patches: which patches are found, and the ranking loss against loops."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sslkit_plugins.video.contrastive.tracked_patches import moving_square

from sslkit import DataInfo
from sslkit.contract.task import Clock
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(**options: Any) -> Any:
    task_class, data = load_task("tracked_patches"), DataInfo(8, 16, 3, "video", {"frames": 6})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def moving(count: int = 4) -> torch.Tensor:
    """Return clips of a textured square of 12 px that moves to the right by 2 px per frame, `[count, 6, 3, 40, 40]`."""
    torch.manual_seed(0)
    clip = 0.3 * torch.rand(count, 1, 1, 40, 40).expand(-1, 6, 3, -1, -1).clone()
    texture = F.interpolate(torch.rand(count, 1, 4, 4), size=(12, 12), mode="bilinear")
    for time in range(6):
        clip[:, time, :, 14:26, 6 + 2 * time : 18 + 2 * time] = 0.5 + 0.5 * texture
    return clip


def test_the_square_in_which_something_moves_is_tracked() -> None:
    clip = moving()
    top, left = moving_square(clip.mean(dim=2), side=20)
    assert ((top <= 14) & (top + 20 >= 26)).all() and (left <= 8).all()
    batch = build(distance=0.1).transform({"video": clip, "aspect": torch.ones(4)})
    assert batch["image"].shape == (4, 2, 3, 16, 16) and batch["valid"].all()
    first, last = batch["image"].unbind(1)
    assert (first - last).abs().mean() < 0.2
    still = clip[:, :1].expand(-1, 6, -1, -1, -1)
    assert not build().transform({"video": still, "aspect": torch.ones(4)})["valid"].any()


@pytest.mark.parametrize("progress", [0.0, 1.0])
def test_loss_against_loops(progress: float) -> None:
    torch.manual_seed(0)
    task = build(margin=0.5, hard=2)
    task.clock = Clock(steps=10, step=round(10 * progress))
    output = F.normalize(torch.randn(5, 2, 7), dim=2)
    batch = {"valid": torch.tensor([True, True, False, True, True])}
    lowest = highest = 0.0
    for row in range(5):
        if not batch["valid"][row]:
            continue
        positive = 1 - float(output[row, 0] @ output[row, 1])
        negatives = sorted(1 - float(output[row, 0] @ output[other, 1]) for other in range(5) if other != row)
        lowest += sum(max(0.0, positive - negative + 0.5) for negative in negatives[-2:]) / 2
        highest += sum(max(0.0, positive - negative + 0.5) for negative in negatives[:2]) / 2
    loss = task.loss(output, batch)["ranking"].item()
    assert task.counts(batch)["ranking"] == 4
    if progress == 1:
        assert loss == pytest.approx(highest, rel=1e-4)
    else:  # any negatives
        assert lowest - 1e-4 <= loss <= highest + 1e-4


def test_accuracy_is_the_share_of_clips_that_are_farther() -> None:
    task, same = build(), F.normalize(torch.randn(5, 1, 7), dim=2).expand(-1, 2, -1)
    metrics = task.metrics(same, {"valid": torch.tensor([True] * 4 + [False])})
    assert metrics["accuracy"].tolist() == pytest.approx([1, 1, 1, 1, 0.5])
    assert metrics["counted"].tolist() == [1, 1, 1, 1, 0]
