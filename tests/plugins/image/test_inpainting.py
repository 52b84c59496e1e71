"""inpainting: the mask, the weights, and which loss trains which network."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field

from sslkit.tasks.load import load_task
from sslkit.testing import check_task
from tests.canvases import canvases


@pytest.mark.parametrize("region", ["center", "block", "region"])
def test_the_hole_is_hidden_and_its_border_counts_ten_times(build: Callable[..., Any], region: str) -> None:
    task = build("inpainting", region=region)
    batch = task.transform(canvases(0.6 + 0.4 * torch.rand(4, 3, 36, 36)))
    mask, weight = batch["mask"], batch["weight"]
    assert (batch["image"][mask.expand_as(batch["image"])] == 0.5).all()
    assert torch.equal(batch["image"].where(~mask, 0.0), batch["target"].where(~mask, 0.0))
    assert task.border == 2
    for sample in range(4):
        for row in range(32):
            for column in range(32):
                near = mask[sample, 0, max(0, row - 2) : row + 3, max(0, column - 2) : column + 3].any()
                expected = 1.0 if mask[sample, 0, row, column] else 10.0 if near else 0.0
                assert float(weight[sample, 0, row, column]) == expected


def test_loss_against_a_loop(build: Callable[..., Any]) -> None:
    task = build("inpainting").eval()
    batch = task.transform(canvases(torch.rand(3, 3, 32, 32)))
    prediction = task.predict(batch)["prediction"].detach()
    total = sum(
        float(batch["weight"][sample, 0, row, column] * (prediction - batch["target"])[sample, :, row, column].square().mean())
        for sample in range(3)
        for row in range(32)
        for column in range(32)
    )
    terms = task.loss({"prediction": prediction}, batch)
    assert list(terms) == ["reconstruction"] and float(terms["reconstruction"]) == pytest.approx(total, rel=1e-4)
    assert float(task.counts(batch)["reconstruction"]) == pytest.approx(float(batch["weight"].sum()))


def test_critic_and_decoder_have_opposite_objectives_in_one_pass(build: Callable[..., Any]) -> None:
    task = build("inpainting", adversarial=0.3, norm="none")
    batch = task.transform(canvases(torch.rand(4, 3, 32, 32)))
    output = task.predict(batch)
    assert output["fake"].shape == output["real"].shape == (4,) and torch.equal(output["fake"], output["fake_frozen"])
    terms = task.loss(output, batch)
    assert torch.allclose(terms["adversarial"], 0.3 * F.softplus(-output["fake"]).mean())
    expected = F.softplus(-output["real"]).mean() + F.softplus(output["fake"]).mean()
    assert torch.allclose(terms["critic"], expected)

    critic, decoder = list(task.critic.parameters()), list(task.head.parameters())
    assert torch.autograd.grad(terms["adversarial"], critic, retain_graph=True, allow_unused=True) == (None,) * len(critic)
    assert torch.autograd.grad(terms["critic"], decoder, retain_graph=True, allow_unused=True) == (None,) * len(decoder)
    assert all(gradient.any() for gradient in torch.autograd.grad(terms["adversarial"], decoder, retain_graph=True))
    assert all(gradient.any() for gradient in torch.autograd.grad(terms["critic"], critic))
    assert task.param_groups()[0]["lr"] == 1e-4


def test_critic_sees_the_region_only(build: Callable[..., Any]) -> None:
    task = build("inpainting", adversarial=0.3, norm="none").eval()
    batch = task.transform(canvases(torch.rand(2, 3, 32, 32)))
    elsewhere = {**batch, "target": batch["target"].where(batch["mask"], 0.9)}
    assert torch.equal(task.predict(batch)["real"], task.predict(elsewhere)["real"])


def test_error_share_of_the_mean_color_is_one(build: Callable[..., Any]) -> None:
    task = build("inpainting", region="center")
    image = torch.rand(2, 3, 32, 32)
    mask = torch.zeros(2, 1, 32, 32, dtype=torch.bool)
    mask[..., 8:24, 8:24] = True
    mean = (image * ~mask).sum(dim=(2, 3), keepdim=True) / 768
    batch = {"target": image, "mask": mask}
    assert torch.allclose(task.metrics({"prediction": mean.expand_as(image)}, batch)["error_share"], torch.ones(2))
    assert torch.allclose(task.metrics({"prediction": image}, batch)["error_share"], torch.zeros(2))


class WithCritic(load_task("inpainting")):  # type: ignore[misc]
    """Train against a critic, as `--adversarial 0.1` does."""

    class Options(load_task("inpainting").Options):  # type: ignore[misc]
        adversarial: float = Field(default=0.1, ge=0, lt=1, description="Weight of the adversarial loss.")


def test_with_a_critic_the_promises_are_kept() -> None:
    assert not [verdict for verdict in check_task(WithCritic) if not verdict.passed]


@pytest.mark.slow
def test_with_a_critic_the_promises_are_kept_in_full() -> None:
    assert not [verdict for verdict in check_task(WithCritic, full=True) if not verdict.passed]
