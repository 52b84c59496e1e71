"""MoCo: loss against a loop, recipes, teacher and queue."""

import math
from typing import Any

import pytest
import torch

from sslkit import Clock, DataInfo
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task
from tests.canvases import canvases


def moco(**options: Any) -> Any:
    task_class = load_task("moco")
    encoder = build_encoder(recipe_for("resnet_micro", 32, options={"width": "8"}))
    return task_class(task_class.Options(**{"queue": 16, **options}), encoder, DataInfo(64, 32))


def test_loss_against_a_loop() -> None:
    task = moco(temperature=0.3)
    output = {name: torch.nn.functional.normalize(torch.randn(5, 128), dim=1) for name in ("query", "key")}
    total = 0.0
    for query, key in zip(output["query"], output["key"], strict=True):
        scores = [float(query @ key), *(float(query @ other) for other in task.queue.rows)]
        total -= math.log(math.exp(scores[0] / 0.3) / sum(math.exp(score / 0.3) for score in scores))
    assert float(task.loss(output, {})) == pytest.approx(total / 5, rel=1e-5)
    bound = task.metrics(output, {})["information_bound_nats"].mean()
    assert float(bound) == pytest.approx(math.log(17) - total / 5, rel=1e-4)


def test_recipes() -> None:
    v1, v2 = moco(variant="v1"), moco()
    assert (v1.temperature, v2.temperature) == (0.07, 0.2)
    assert (len(v1.head), len(v2.head)) == (1, 4)  # linear; linear, norm, ReLU, linear
    for task in (v1, v2):
        assert task.transform(canvases(torch.rand(3, 3, 36, 36)))["image"].shape == (3, 2, 3, 32, 32)


def test_query_and_key_may_be_blurred_unlike(monkeypatch: pytest.MonkeyPatch) -> None:
    from sslkit.image import views

    rates: list[float] = []
    monkeypatch.setattr(views, "gaussian_blur", lambda image, probability: (rates.append(probability), image)[1])
    task = moco(blur="1/0.1")
    task.transform(canvases(torch.rand(4, 3, 36, 36)))
    assert rates == [1.0, 0.1]


def test_momentum_fits_the_length_of_the_run() -> None:
    task = moco()
    for steps, expected in ((20, 0.9), (500, 0.98), (10**6, 0.999)):
        task.clock = Clock(steps=steps)
        assert task.momentum == pytest.approx(expected)
    assert "0.9990: 1 - 10/steps" in task.reasons()["momentum"]
    assert moco(momentum=0.5).momentum == 0.5 and "momentum" not in moco(momentum=0.5).reasons()


def test_after_step_moves_teacher_and_queue() -> None:
    task = moco(momentum=0.75).train()
    assert not task.teacher.training and not any(p.requires_grad for p in task.teacher.parameters())
    weight = task.teacher.parts[1][0].weight.clone()
    with torch.no_grad():
        task.head[0].weight.add_(1)
    keys = torch.randn(4, 128)
    task.after_step({"key": keys})
    assert torch.allclose(task.teacher.parts[1][0].weight, weight + 0.25, atol=1e-6)
    assert torch.equal(task.queue.rows[:4], keys) and int(task.queue.position) == 4


def test_keys_do_not_depend_on_the_batch() -> None:
    """In train mode BatchNorm would leak which other samples are in the batch."""
    task = moco().train()
    image = torch.rand(8, 2, 3, 32, 32)
    whole, half = task.predict({"image": image})["key"], task.predict({"image": image[:4]})["key"]
    assert torch.allclose(whole[:4], half, atol=1e-5)
