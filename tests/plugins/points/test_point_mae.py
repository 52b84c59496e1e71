"""point_mae: what is hidden, and the Chamfer distance against loops."""

from typing import Any

import pytest
import torch
from sslkit_plugins.points.masked.point_mae import chamfer

from sslkit import DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task

OPTIONS = {"width": "32", "depth": "2", "patches": "8", "patch_points": "6"}


def build(**options: Any) -> Any:
    task_class, data = load_task("point_mae"), DataInfo(4, 64, 3, "points")
    parsed = task_class.Options(**options)
    builder = RecipeBuilder(recipe_for("point_patches_micro", 64, 3, OPTIONS), data)
    return task_class(parsed, task_class.build_encoder(parsed, builder), data)


def test_chamfer_distance_against_loops() -> None:
    first, second = torch.rand(2, 3, 5, 3), torch.rand(2, 3, 5, 3)
    result = chamfer(first, second)
    for sample in range(2):
        for patch in range(3):
            a, b = first[sample, patch], second[sample, patch]
            there = sum(min(float((x - y).square().sum()) for y in b) for x in a) / 5
            back = sum(min(float((x - y).square().sum()) for x in a) for y in b) / 5
            assert result[sample, patch].item() == pytest.approx(there + back, rel=1e-5)
    assert torch.equal(chamfer(second, first), result)
    assert torch.equal(chamfer(first, first[:, :, torch.randperm(5)]), torch.zeros(2, 3))


@pytest.mark.parametrize(("ratio", "hidden"), [(0.6, 5), (0.01, 1), (0.99, 7)])
def test_patches_are_visible_or_hidden(ratio: float, hidden: int) -> None:
    torch.manual_seed(0)
    task, points = build(mask_ratio=ratio), torch.rand(4, 64, 3) - 0.5
    batch = task.transform({"points": points})
    assert batch["visible"].shape == (4, 8 - hidden, 6, 3) and batch["target"].shape == (4, hidden, 6, 3)
    all_patches = torch.cat([batch["visible"], batch["target"]], dim=1) + batch["centers"][:, :, None]
    for cloud, patches in zip(batch["points"], all_patches, strict=True):
        assert (torch.cdist(patches.flatten(0, 1), cloud).amin(dim=1) < 1e-3).all()
        assert (torch.cdist(batch["centers"].flatten(0, 1), batch["points"].flatten(0, 1)).amin(dim=1) < 1e-3).all()
    assert task.predict(batch).shape == (4, hidden, 6, 3)


def test_predictions_at_the_center_have_an_error_share_of_one() -> None:
    torch.manual_seed(0)
    task = build()
    batch = task.transform({"points": torch.rand(4, 64, 3) - 0.5})
    metrics = task.metrics(torch.zeros_like(batch["target"]), batch)
    assert torch.allclose(metrics["error_share"], torch.ones(4)) and task.chance() == {"error_share": 1.0}
    assert task.metrics(batch["target"], batch)["error_share"].max() < 1e-6
    assert task.loss(batch["target"], batch).item() == 0
