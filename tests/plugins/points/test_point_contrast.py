"""point_contrast: matches are the same points, and the loss against loops."""

import math
from typing import Any

import pytest
import torch

from sslkit import DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.points.transforms import rotate, rotate_freely
from sslkit.tasks.load import load_task


def build(**options: Any) -> Any:
    task_class, data = load_task("point_contrast"), DataInfo(4, 64, 4, "points", {"point_features": 1})
    parsed = task_class.Options(width=8, **options)
    builder = RecipeBuilder(recipe_for("pointnet_micro", 64, 4, {"width": "8"}), data)
    return task_class(parsed, task_class.build_encoder(parsed, builder), data)


def clouds(count: int = 3) -> dict[str, torch.Tensor]:
    points = torch.rand(count, 64, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    points[..., 3] = torch.arange(64.0)  # names the point
    return {"points": points}


@pytest.mark.parametrize("rotation", ["vertical", "free", "none"])
def test_matches_are_the_same_points(rotation: str) -> None:
    torch.manual_seed(1)
    task, batch = build(rotation=rotation, share=0.7), clouds()
    result = task.transform(batch)
    assert result["points"].shape == (3, 2, 45, 4) and result["places"].shape == (3, 2, 26)
    names = result["points"][..., 3].gather(2, result["places"])
    assert torch.equal(names[:, 0], names[:, 1])
    assert all(len(set(row.tolist())) == 26 for row in names[:, 0])
    for cloud in range(3):
        first, second = (set(result["points"][cloud, view, :, 3].tolist()) for view in range(2))
        assert set(names[cloud, 0].tolist()) == first & second and len(first | second) == 64
        kept = batch["points"][cloud, names[cloud, 0].long(), :3]
        distance = torch.cdist(kept, kept)
        expected = (distance < task.options.radius) & ~torch.eye(26, dtype=torch.bool)
        assert torch.equal(result["near"][cloud], expected)
        order = result["points"][cloud, 0, :, 3]
        assert not torch.equal(order, order.sort().values)  # the place of a point tells nothing


def distances(points: torch.Tensor) -> torch.Tensor:
    return (points[:, :, None, :3] - points[:, None, :, :3]).norm(dim=3)


def test_rotations_keep_distances() -> None:
    points = clouds()["points"]
    distance = distances(points)
    for turned in (rotate(points, torch.tensor([0.3, 1.0, -2.0])), rotate_freely(points)):
        assert torch.allclose(distances(turned), distance, atol=1e-5)
        assert torch.equal(turned[..., 3], points[..., 3]) and not torch.allclose(turned, points)
    quarter = rotate(torch.tensor([[[1.0, 0.0, 5.0]]]), torch.tensor([math.pi / 2]))
    assert torch.allclose(quarter, torch.tensor([[[0.0, 1.0, 5.0]]]), atol=1e-6)


def test_loss_against_a_loop() -> None:
    torch.manual_seed(2)
    task = build(radius=0.15)
    batch = task.transform(clouds())
    output = task.predict(batch).detach()
    total, count = 0.0, 0
    for cloud in range(3):
        for i in range(task.pairs):
            others = [j for j in range(task.pairs) if not batch["near"][cloud, i, j]]
            scores = [float(output[cloud, 0, i] @ output[cloud, 1, j]) / 0.07 for j in others]
            match = float(output[cloud, 0, i] @ output[cloud, 1, i]) / 0.07
            total += math.log(sum(math.exp(score - match) for score in scores))
            count += 1
    assert batch["near"].any() and task.loss(output, batch).item() == pytest.approx(total / count, rel=1e-4)
    uniform = torch.ones_like(output)
    free = {**batch, "near": torch.zeros_like(batch["near"])}
    assert task.loss(uniform, free).item() == pytest.approx(math.log(task.pairs), rel=1e-5)
    assert task.chance() == {"accuracy": 1 / task.pairs}
