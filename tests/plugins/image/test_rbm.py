"""rbm: energies by enumeration, contrastive divergence by hand, and what training does to the likelihood."""

import math
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task

SIDE, HIDDEN = 2, 3
VALUES = SIDE**2


def build(widths: str = str(HIDDEN), samples: int = 64, size: int = SIDE, deviation: float = 0.8, **options: Any) -> Any:
    """Return a machine whose weights are large enough to matter."""
    task_class, data = load_task("rbm"), DataInfo(samples, size, 1, batch_size=samples)
    parsed = task_class.Options(**options)
    recipe = recipe_for("rbm_stack", size, 1, {"widths": widths})
    torch.manual_seed(0)
    task = task_class(parsed, task_class.build_encoder(parsed, RecipeBuilder(recipe, data)), data)
    with torch.no_grad():
        for values in (*task.encoder.weights, *task.encoder.biases, *task.head):
            values.normal_(std=deviation)
    task.clock.steps = 100
    return task


def canvases(images: Tensor) -> dict[str, Tensor]:
    return {"canvas": images, "aspect": torch.ones(len(images))}


def states(units: int) -> Tensor:
    return torch.tensor(list(product((0.0, 1.0), repeat=units)))


def log_joint(task: Any) -> Tensor:
    """Return the unnormalized log probability of all visible and hidden states, `[16, 8]`, by its definition."""
    weight, hidden_bias, bias = task.encoder.weights[0], task.encoder.biases[0], task.head[0]
    visible, hidden = states(VALUES), states(HIDDEN)
    return (visible @ weight @ hidden.T + (visible @ bias)[:, None] + hidden @ hidden_bias).detach()


def log_likelihood(task: Any, visible: Tensor) -> float:
    joint = log_joint(task)
    rows = (visible @ torch.tensor([8.0, 4.0, 2.0, 1.0])).long()
    return float(joint.logsumexp(dim=1)[rows].mean() - joint.flatten().logsumexp(0))


def test_free_energy_sums_hidden_states() -> None:
    task = build()
    assert torch.allclose(-task.free_energy(states(VALUES), 0), log_joint(task).logsumexp(dim=1), atol=1e-5)
    task = build(visible="gaussian")
    visible, weight = torch.randn(5, VALUES), task.encoder.weights[0]
    terms = [
        -(visible - task.head[0]).square().sum(dim=1) / 2 + (visible @ weight + task.encoder.biases[0]) @ hidden
        for hidden in states(HIDDEN)
    ]
    assert torch.allclose(-task.free_energy(visible, 0), torch.stack(terms).logsumexp(dim=0), atol=1e-5)


def test_the_gradient_is_that_of_contrastive_divergence() -> None:
    task = build()
    batch = task.transform(canvases(torch.rand(64, 1, SIDE, SIDE)))
    data, negative = batch["data"], batch["negative"]
    assert torch.allclose(data, batch["image"].flatten(1)) and ((negative > 0) & (negative < 1)).all()
    (loss,) = task.loss(task.predict(batch), batch).values()
    loss.backward()

    def moments(visible: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = torch.sigmoid(visible @ task.encoder.weights[0] + task.encoder.biases[0])
        return visible.T @ hidden / 64, hidden.mean(dim=0), visible.mean(dim=0)

    parameters = (task.encoder.weights[0], task.encoder.biases[0], task.head[0])
    for parameter, positive, other in zip(parameters, moments(data), moments(negative), strict=True):
        assert torch.allclose(parameter.grad, other - positive, atol=1e-5)


def test_long_chains_have_the_model_s_moments() -> None:
    task = build(samples=20_000, gibbs_steps=50, chains=20_000)
    with torch.no_grad():
        batch = task.transform(canvases(torch.rand(20_000, 1, SIDE, SIDE).round()))
    assert set(batch["negative"].unique().tolist()) == {0.0, 1.0}
    probability = log_joint(task).flatten().softmax(0).view(2**VALUES, 2**HIDDEN)
    expected = states(VALUES).T @ probability @ states(HIDDEN)
    hidden = task.encoder.hidden(batch["negative"], 0)
    assert torch.allclose(batch["negative"].T @ hidden / 20_000, expected, atol=0.015)


@pytest.mark.parametrize("options", [{}, {"chains": 64, "gibbs_steps": 5}])
def test_training_raises_the_exact_likelihood(options: dict[str, Any]) -> None:
    """Of images that are black, white, or white in one of two columns."""
    task = build(deviation=0.05, **options)
    kinds = torch.tensor([[0.0, 0, 0, 0], [1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]])
    images = kinds[torch.arange(64) % 4].view(64, 1, SIDE, SIDE)
    before = log_likelihood(task, kinds)
    optimizer = torch.optim.SGD(task.parameters(), lr=0.2)
    for step in range(1000):
        task.clock.step = step % 100
        batch = task.transform(canvases(images))
        output = task.predict(batch)
        optimizer.zero_grad()
        sum(task.loss(output, batch).values()).backward()
        optimizer.step()
        task.after_step(task.remember(output, batch))
    after = log_likelihood(task, kinds)
    assert before < -2.7 and after > -1.9, (before, after)  # -2.77: all images alike; -1.39: these four alone


def test_chains_go_on_where_they_ended() -> None:
    task = build(chains=10, samples=16)
    images = torch.ones(16, 1, SIDE, SIDE)
    for _ in range(2):
        batch = task.transform(canvases(images))
        task.after_step(task.remember(task.predict(batch), batch))
    assert torch.equal(task.chains[:, :VALUES], batch["negative"][:10]) and int(task.begun) == 0


def test_layers_are_trained_one_after_the_other_and_then_unrolled() -> None:
    task = build("6-5-4", unroll=0.25)
    images = torch.rand(8, 1, SIDE, SIDE)
    layers = []
    for step in range(100):
        task.clock.step = step
        batch = task.transform(canvases(images))
        layers.append(batch.get("layer"))
        if step == 60:
            assert batch["data"].shape == (8, 5)
            assert torch.allclose(batch["data"], task.encoder.layers(images)[1].detach())
            sum(task.loss(task.predict(batch), batch).values()).backward()
            assert task.encoder.weights[1].grad is None and task.encoder.weights[2].grad is not None
    assert [layers.count(layer) for layer in ("0", "1", "2", None)] == [25, 25, 25, 25]
    with torch.no_grad():
        output, x = task.predict(batch), task.encoder(images)
    for layer in (2, 1, 0):
        x = torch.sigmoid(x @ task.encoder.weights[layer].T + task.head[layer]).detach()
    expected = -(images.flatten(1) * x.log() + (1 - images.flatten(1)) * (1 - x).log()).sum(dim=1).mean()
    assert float(task.loss(output, batch)["reconstruction"]) == pytest.approx(float(expected), rel=1e-5)
    assert set(task.metrics(output, batch)) == {"error_share"} and task.remember(output, batch) == {}
    task.after_step({})
    assert task.preview(batch, output).shape[:2] == (8, 3)


def test_a_sparsity_target_moves_hidden_units_towards_it() -> None:
    activity = {}
    for target in (0.0, 0.1):
        task = build("8", deviation=0.05, sparsity_target=target, sparsity=5.0)
        optimizer = torch.optim.SGD(task.parameters(), lr=0.2)
        images = torch.rand(64, 1, SIDE, SIDE).round()
        for _ in range(300):
            batch = task.transform(canvases(images))
            output = task.predict(batch)
            optimizer.zero_grad()
            sum(task.loss(output, batch).values()).backward()
            optimizer.step()
            task.after_step(task.remember(output, batch))
        activity[target] = float(output["activity"].detach().mean())
    assert activity[0.0] > 0.3 and abs(activity[0.1] - 0.1) < 0.05


def test_pixels_are_measured() -> None:
    class Photographs:
        def batch(self, count: int, select: Any) -> Any:
            return select(canvases(0.3 + 0.1 * torch.randn(500, 1, SIDE, SIDE)))

    task = build(visible="gaussian")
    task.before_epoch(Photographs())
    assert torch.allclose(task.encoder.mean, torch.full((VALUES,), 0.3), atol=0.02)
    assert torch.allclose(task.encoder.scale, torch.full((VALUES,), 0.1), atol=0.02)
    image = torch.rand(3, 1, SIDE, SIDE)
    assert torch.allclose(task.encoder.image(task.encoder.visible(image)), image, atol=1e-5)
    task = build()
    task.before_epoch(Photographs())
    assert torch.allclose(task.head[0], torch.full((VALUES,), math.log(0.3 / 0.7)), atol=0.1)


def test_widths_and_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(SslkitError, match="--encoder-option: widths of rbm_stack should be numbers such as 500-500-2000"):
        build("12-")
    with pytest.raises(SslkitError, match="--size: images of 96 px have 9,216 values"):
        build(size=96)
    with pytest.raises(SslkitError, match=r"--size: rbm_stack was built for 1×2×2 .got 1×4×4"):
        build().encoder(torch.rand(2, 1, 4, 4))
