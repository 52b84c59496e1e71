"""motion_segmentation: targets, and the loss against loops."""

from typing import Any

import torch
import torch.nn.functional as F

from sslkit import DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(**options: Any) -> Any:
    task_class, data = load_task("motion_segmentation"), DataInfo(8, 32, 3, "video", {"frames": 7})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 32, 3, {"width": "8"}), data))
    return task_class(parsed, encoder, data)


def test_targets_are_what_moves_in_the_middle_frame() -> None:
    torch.manual_seed(0)
    clip = 0.3 * torch.rand(6, 1, 3, 40, 40).expand(-1, 7, -1, -1, -1).clone()
    for time in range(7):
        clip[:, time, :, 12:28, 4 * time : 4 * time + 12] = 0.9
    task = build(crop_scale=1.0)
    batch = task.transform({"video": clip, "aspect": torch.ones(6)})
    assert batch["image"].shape == (6, 3, 32, 32) and batch["moving"].shape == (6, 8, 8) and batch["valid"].all()
    bright = F.adaptive_avg_pool2d((batch["image"].amin(dim=1) > 0.6).float()[:, None], 8)[:, 0]
    known = batch["moving"] >= 0
    assert known.float().mean() > 0.9
    assert torch.corrcoef(torch.stack([batch["moving"][known], bright[known]]))[0, 1] > 0.95
    still = clip[:, :1].expand(-1, 7, -1, -1, -1)
    assert not task.transform({"video": still, "aspect": torch.ones(6)})["valid"].any()


def test_loss_weighs_moving_and_still_places_alike_and_skips_unknown_ones() -> None:
    torch.manual_seed(0)
    task = build()
    output = torch.randn(3, 8, 8, requires_grad=True)
    moving = torch.randint(-1, 2, (3, 8, 8)).float()
    batch = {"moving": moving, "valid": torch.tensor([True, False, True])}
    total = 0.0
    for clip in (0, 2):
        parts = []
        for value in (1.0, 0.0):
            places = (moving[clip] == value).nonzero().tolist()
            parts.append(
                sum(F.softplus(output[clip, y, x] if value == 0 else -output[clip, y, x]) for y, x in places) / len(places)
            )
        total = total + sum(parts) / 2
    loss = task.loss(output, batch)["motion"]
    assert torch.allclose(loss, total) and task.counts(batch)["motion"] == 2
    loss.backward()
    assert output.grad is not None and (output.grad[moving < 0] == 0).all() and (output.grad[1] == 0).all()


def test_accuracy_is_balanced_and_chance_where_a_clip_does_not_count() -> None:
    task, moving = build(), torch.zeros(3, 8, 8)
    moving[:, :2], moving[:, 7] = 1, -1
    batch = {"moving": moving, "valid": torch.tensor([True, True, False])}
    everything = torch.full((3, 8, 8), 4.0)
    assert task.metrics(everything, batch)["accuracy"].tolist() == [0.5, 0.5, 0.5]
    right = torch.where(moving == 1, 4.0, -4.0)
    assert task.metrics(right, batch)["accuracy"].tolist() == [1, 1, 0.5]
