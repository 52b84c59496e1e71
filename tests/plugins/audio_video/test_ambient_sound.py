"""ambient_sound: what kinds of sound there are, and what is predicted of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task

KINDS = 4


class Sounds:
    """A run whose videos have one of four kinds of sound at both moments: two tones, noise, and noise that beats."""

    def batch(self, count: int, select: Callable[[Any], Any] = lambda batch: batch) -> Any:
        generator = torch.Generator().manual_seed(1)
        time = torch.arange(4000) / 8000
        sounds = []
        for number in range(40):
            noise = torch.randn(2, 4000, generator=generator)
            level = 0.01 + 0.3 * torch.rand(2, 1, generator=generator)
            tone = torch.sin(2 * torch.pi * (300 if number % KINDS == 0 else 2000) * time) + 0.05 * noise
            beating = noise * (1 + torch.sin(2 * torch.pi * 10 * time))
            sounds.append(level * [tone, tone, noise, beating][number % KINDS])
        video = torch.rand(40, 2, 3, 20, 20, generator=generator)
        return select({"video": video, "audio": torch.stack(sounds), "aspect": torch.ones(40), "apart": torch.ones(40).bool()})


def build(samples: int = 40, **options: Any) -> Any:
    task_class = load_task("ambient_sound")
    data = DataInfo(samples, 16, 3, "audio_video", {"sample_rate": 8000, "window": 500})
    parsed = task_class.Options(**options)
    encoder = task_class.build_encoder(parsed, RecipeBuilder(recipe_for("resnet_micro", 16, 3, {"width": "8"}), data))
    torch.manual_seed(0)
    return task_class(parsed, encoder, data)


def fitted(**options: Any) -> tuple[Any, dict[str, Tensor]]:
    task = build(**options)
    torch.manual_seed(3)
    task.before_epoch(Sounds())
    return task, task.transform(Sounds().batch(40))


def test_clusters_are_kinds_of_sound_whatever_their_level() -> None:
    task, batch = fitted(count=KINDS)
    target = batch["target"]
    assert target.shape == (40, 2)
    kinds = target.view(-1, KINDS, 2).transpose(1, 2).flatten(0, 1)  # [20, kinds]
    assert (kinds == kinds[:1]).all() and len(set(kinds[0].tolist())) == KINDS
    metrics = task.metrics(F.one_hot(target, KINDS).float(), batch)
    assert (metrics["accuracy"] == 1).all() and float(metrics["majority"].mean()) == pytest.approx(0.25)


def test_targets_are_the_same_for_a_seed_and_after_loading() -> None:
    (first, batch), (second, again) = fitted(count=KINDS), fitted(count=KINDS)
    assert torch.equal(batch["target"], again["target"])
    other = build(count=KINDS)
    other.load_state_dict(first.state_dict())
    other.clock.epoch = 1
    other.before_epoch(Sounds())
    assert torch.equal(other.transform(Sounds().batch(40))["target"], batch["target"])
    assert torch.equal(other.centers, second.centers)


def test_bits_are_signs_of_uncorrelated_components() -> None:
    task, batch = fitted(target="bits", count=8)
    assert batch["target"].shape == (40, 2, 8) and set(batch["target"].unique().tolist()) == {0.0, 1.0}
    described = task._describe_statistics(task.texture(Sounds().batch(40)["audio"].flatten(0, 1)))
    covariance = described.T @ described / len(described)
    assert torch.allclose(covariance, covariance.diagonal().diag(), atol=1e-3 * float(covariance[0, 0]))
    assert (covariance.diagonal().diff() <= 1e-4).all()
    output = torch.randn(40, 2, 8)
    expected = -(batch["target"] * F.logsigmoid(output) + (1 - batch["target"]) * F.logsigmoid(-output)).mean()
    assert float(task.loss(output, batch)) == pytest.approx(float(expected), rel=1e-5)
    assert task.chance() == {"accuracy": 0.5}


def test_the_loss_is_the_mean_cross_entropy() -> None:
    task, batch = fitted(count=KINDS)
    output = torch.randn(40, 2, KINDS)
    nats = [-output[row, moment].log_softmax(0)[batch["target"][row, moment]] for row in range(40) for moment in range(2)]
    assert float(task.loss(output, batch)) == pytest.approx(float(torch.stack(nats).mean()), rel=1e-5)
    assert task.preview(batch, None).shape[:2] == (KINDS, 8) and task.preview(batch, output).shape[2:] == (3, 16, 16)


def test_two_bits_make_four_kinds_of_sound() -> None:
    task, batch = fitted(target="bits", count=2)
    assert len(task.preview(batch, None)) <= 4 and len(task.preview(batch, torch.randn(40, 2, 2))) == 4


def test_few_videos_have_fewer_kinds_of_sound() -> None:
    assert build(40).count == 4 and build(5000).count == 30
    with pytest.raises(SslkitError, match="--count: 60 exceeds the 40 training samples"):
        build(40, count=60)
