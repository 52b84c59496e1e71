"""cpc_audio: InfoNCE against loops, with and without frames of another recording."""

import math
from typing import Any

import pytest
import torch

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


def build(milliseconds: int = 250, **options: Any) -> Any:
    torch.manual_seed(0)
    task_class, data = load_task("cpc_audio"), DataInfo(8, milliseconds, 1, "audio", {"sample_rate": 8000})
    parsed = task_class.Options(**options)
    builder = RecipeBuilder(recipe_for("cpc_micro", milliseconds, 1, {"width": "8", "sample_rate": "8000"}), data)
    return task_class(parsed, task_class.build_encoder(parsed, builder), data)


def recordings() -> dict[str, torch.Tensor]:
    sound = 0.1 * torch.randn(4, 2, 2000, generator=torch.Generator().manual_seed(1))
    sound[-1, :, 1200:] = 0
    return {"audio": sound}


@pytest.mark.parametrize("negatives", ["window", "recordings"])
def test_loss_against_loops(negatives: str) -> None:
    task = build(steps_ahead=3, negatives=negatives)
    batch = task.transform(recordings())
    output = task.predict(batch)
    frames, predictions, recorded = output["frames"].detach(), output["predictions"].detach(), batch["recorded"]
    length, total, count = recorded.shape[1], 0.0, 0
    assert frames.shape[1] == (length if negatives == "window" else 2 * length)
    for sample in range(4):
        allowed = [place for place in range(length) if recorded[sample, place]]
        if negatives == "recordings":
            allowed += [length + place for place in range(length) if recorded[sample - 1, place]]
        for ahead in (1, 2, 3):
            for place in range(length - ahead):
                if recorded[sample, place + ahead]:
                    prediction = predictions[sample, ahead - 1, place]
                    scores = {other: float(prediction @ frames[sample, other]) for other in allowed}
                    total += math.log(sum(map(math.exp, scores.values()))) - scores[place + ahead]
                    count += 1
    assert task.loss(output, batch)["nats"].item() == pytest.approx(total, rel=1e-4)
    assert task.counts(batch)["nats"] == count
    metrics = task.metrics(output, batch)
    assert set(metrics) == {"accuracy", "first_accuracy", "last_accuracy"} and metrics["accuracy"].shape == (4,)


def test_equal_frames_leave_a_guess() -> None:
    task = build(steps_ahead=2)
    batch = task.transform({"audio": recordings()["audio"][:3]})
    output = task.predict(batch)
    output["frames"] = torch.ones_like(output["frames"])
    nats = task.loss(output, batch)["nats"] / task.counts(batch)["nats"]
    assert nats.item() == pytest.approx(math.log(batch["recorded"].shape[1]), rel=1e-4)


def test_windows_that_are_too_short() -> None:
    with pytest.raises(SslkitError, match=r"--steps-ahead: 40 is too many for windows of"):
        build(steps_ahead=40)
