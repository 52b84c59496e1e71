"""depth_contrast: four terms against loops, parts of what is visible, queues and teachers."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(**options: Any) -> Any:
    task_class, data = load_task("depth_contrast"), DataInfo(4, 64, 4, "points", {"point_features": 1})
    parsed = task_class.Options(**{"queue": 6, "width": 8, **options})
    builder = RecipeBuilder(recipe_for("pointnet_micro", 64, 4, {"width": "8"}), data)
    return task_class(parsed, task_class.build_encoder(parsed, builder), data)


def clouds() -> torch.Tensor:
    points = torch.rand(4, 64, 4, generator=torch.Generator().manual_seed(0)) - 0.5
    points[..., 3] = torch.arange(64.0)  # names the point
    return points


@pytest.mark.parametrize("second", ["none", "voxel_micro"])
def test_terms_against_loops(second: str) -> None:
    torch.manual_seed(0)
    task = build(second_encoder=second, temperature=0.3)
    names = ["query", "key"] if second == "none" else ["query", "key", "second_query", "second_key"]
    output = {name: F.normalize(torch.randn(4, 8), dim=1) for name in names}
    terms = task.loss(output, {})

    def term(query: str, key: str, queue: torch.Tensor) -> float:
        total = 0.0
        for place in range(4):
            scores = [float(output[query][place] @ other) / 0.3 for other in (output[key][place], *queue)]
            total += math.log(sum(math.exp(score) for score in scores)) - scores[0]
        return total / 4

    if second == "none":
        assert terms == {"within": pytest.approx(term("query", "key", task.queue.rows), rel=1e-5)}
        return
    first_queue, second_queue = task.queue.rows, task.second_queue.rows
    expected = {
        "within": term("query", "key", first_queue),
        "second_within": term("second_query", "second_key", second_queue),
        "to_second": term("query", "second_key", second_queue),
        "from_second": term("second_query", "key", first_queue),
    }
    assert {name: value.item() for name, value in terms.items()} == pytest.approx(
        {name: value / 2 for name, value in expected.items()}, rel=1e-5
    )


def test_parts_are_of_one_cloud_and_keys_come_from_a_teacher_in_eval_mode() -> None:
    torch.manual_seed(1)
    task = build(second_encoder="voxel_micro").train()
    batch = task.transform({"points": clouds()})
    assert batch["points"].shape == (4, 2, 32, 4)
    assert set(batch["points"][..., 3].unique().tolist()) <= set(range(64))
    assert not task.teacher.training and not task.second_teacher.training
    output = task.predict(batch)
    assert {name: value.requires_grad for name, value in output.items()} == {
        "query": True, "key": False, "second_query": True, "second_key": False,
    }  # fmt: skip
    task.after_step(task.remember(output, batch))
    assert torch.equal(task.queue.rows[:4], output["key"]) and torch.equal(task.second_queue.rows[:4], output["second_key"])


def test_all_points_may_be_used() -> None:
    torch.manual_seed(2)
    task = build(input="cloud", crop=1.0, drop=0.0)
    names = task.transform({"points": clouds()})["points"][..., 3]
    assert all(len(set(part.tolist())) == 32 for part in names.flatten(0, 1))
    assert len(names[:, :].unique()) == 64


def test_a_second_encoder_of_images_is_refused() -> None:
    with pytest.raises(SslkitError, match="resnet_micro is no encoder of points"):
        build(second_encoder="resnet_micro")
