"""cola: its loss against a loop."""

import math

import pytest
import torch

from sslkit import DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def test_loss_and_metrics_against_a_loop() -> None:
    task_class = load_task("cola")
    data = DataInfo(8, 100, 1, "audio", {"sample_rate": 8000})
    options = task_class.Options(width=6)
    recipe = recipe_for("audio_micro", 100, 1, {"width": "8", "sample_rate": "8000"})
    task = task_class(options, task_class.build_encoder(options, RecipeBuilder(recipe, data)), data)
    batch = task.transform({"audio": torch.randn(5, 2, 800)})
    output = task.predict(batch)
    heads = [[task.head(task.encoder(batch["audio"][i : i + 1, view]))[0] for view in range(2)] for i in range(5)]
    matrix = task.similarity.weight
    scores = torch.stack([torch.stack([(matrix @ heads[i][0]) @ heads[j][1] for j in range(5)]) for i in range(5)]).detach()
    losses = [float(torch.logsumexp(scores[i], 0) - scores[i, i]) for i in range(5)]
    assert task.loss(output, batch).item() == pytest.approx(sum(losses) / 5, rel=1e-4)
    metrics = task.metrics(output, batch)
    assert metrics["accuracy"].tolist() == [float(scores[i].argmax() == i) for i in range(5)]
    assert metrics["information_bound_nats"].tolist() == pytest.approx(
        [math.log(5) - loss for loss in losses], rel=1e-4, abs=1e-5
    )
    assert all((heads[i][0].abs() <= 1).all() for i in range(5))  # tanh
    assert task.preview(batch, None).shape == (5, 2, 3, 64, 96) and task.preview(batch, output).shape == (5, 3, 3, 64, 96)
