"""conv_rbm: energies and probabilities by enumeration, the gradient of contrastive divergence, and what training does."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from sslkit import DataInfo, SslkitError
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task
from tests.canvases import canvases


def build(bases: str = "2", size: int = 7, kernel: int = 4, channels: int = 1, **options: Any) -> Any:
    task_class, data = load_task("conv_rbm"), DataInfo(8, size, channels, batch_size=8)
    parsed = task_class.Options(**options)
    recipe = recipe_for("conv_rbm_stack", size, channels, {"bases": bases, "kernel": str(kernel)})
    torch.manual_seed(0)
    task = task_class(parsed, task_class.build_encoder(parsed, RecipeBuilder(recipe, data)), data)
    with torch.no_grad():
        for values in (*task.encoder.weights, *task.encoder.biases, *task.head):
            values.normal_(std=0.5)
    task.clock.steps = 100
    return task


def states() -> Tensor:
    """Return all states of two filters with a block of 2 × 2 each, of which one unit is on at most, `[25, 2, 1, 1, 4]`."""
    block = [torch.zeros(4), *torch.eye(4)]
    return torch.stack([torch.stack(pair) for pair in product(block, repeat=2)])[:, :, None, None]


@pytest.fixture
def task() -> Any:
    """Return a machine with one block for each filter; the encoder's own images would have more."""
    task = build()
    task.encoder.kernel = 2
    with torch.no_grad():
        task.encoder.weights[0] = torch.nn.Parameter(0.5 * torch.randn(2, 1, 2, 2))
    return task


def log_joint(task: Any, visible: Tensor) -> Tensor:
    """Return the unnormalized log probability of visible units `[1, 3, 3]` and each hidden state, by its definition."""
    weight, hidden_bias, bias = task.encoder.weights[0], task.encoder.biases[0], task.head[0]
    logs = []
    for state in states():
        total = -(visible - bias[:, None, None]).square().sum() / 2
        for base, cell in state.nonzero()[:, [0, 3]].tolist():
            row, column = divmod(cell, 2)
            total = total + (weight[base, 0] * visible[0, row : row + 2, column : column + 2]).sum() + hidden_bias[base]
        logs.append(total)
    return torch.stack(logs).detach()


def test_free_energy_and_probabilities_sum_over_hidden_states(task: Any) -> None:
    visible = torch.randn(3, 1, 3, 3)
    probability = task.encoder.hidden(visible, 0)
    for row in range(3):
        joint = log_joint(task, visible[row])
        assert torch.allclose(-task.free_energy(visible, 0)[row], joint.logsumexp(0), atol=1e-5)
        marginal = (joint.softmax(0)[:, None, None, None, None] * states()).sum(dim=0)
        assert torch.allclose(probability[row], marginal, atol=1e-5)


def test_means_of_visible_units_are_those_of_the_energy(task: Any) -> None:
    for state in states()[[0, 3, 12, 24]]:
        mean = task.mean_visible(state[None], 0, torch.Size([1, 1, 3, 3]))[0].detach().requires_grad_()
        weight, hidden_bias, bias = task.encoder.weights[0], task.encoder.biases[0], task.head[0]
        energy = (mean - bias[:, None, None]).square().sum() / 2
        for base, cell in state.nonzero()[:, [0, 3]].tolist():
            row, column = divmod(cell, 2)
            energy = energy - (weight[base, 0] * mean[0, row : row + 2, column : column + 2]).sum() - hidden_bias[base]
        (slope,) = torch.autograd.grad(energy, mean)
        assert slope.abs().max() < 1e-5  # a quadratic function is least at the mean


def test_blocks_have_one_unit_on_at_most() -> None:
    task = build(size=12)
    probability = task.encoder.hidden(torch.randn(400, 1, 12, 12), 0)
    sample = task._sample(probability)
    assert set(sample.unique().tolist()) == {0.0, 1.0} and sample.sum(dim=4).max() == 1
    assert (sample.mean(dim=0) - probability.mean(dim=0)).abs().max() < 0.12
    assert torch.equal(task._sample(torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2)).flatten(), torch.tensor([1.0, 0.0]))
    assert task._sample(torch.zeros(1, 1, 1, 1, 4)).sum() == 0


def test_the_gradient_is_that_of_contrastive_divergence() -> None:
    task = build(size=10, kernel=3, sparsity_target=0.0)
    batch = task.transform(canvases(torch.rand(8, 1, 10, 10)))
    (loss,) = task.loss(task.predict(batch), batch).values()
    loss.backward()
    places = 8 * 8

    def moment(visible: Tensor) -> tuple[Tensor, Tensor]:
        hidden = task.encoder.hidden(visible, 0).detach()
        weight = torch.zeros_like(task.encoder.weights[0])
        for row, column, cell in product(range(4), range(4), range(4)):
            top, left = 2 * row + cell // 2, 2 * column + cell % 2
            patch = visible[:, :, top : top + 3, left : left + 3]
            weight += torch.einsum("bk,bcij->kcij", hidden[:, :, row, column, cell], patch)
        return weight / 8 / places, hidden.sum(dim=(2, 3, 4)).mean(dim=0) / places

    for parameter, data, negative in zip(
        (task.encoder.weights[0], task.encoder.biases[0]), moment(batch["data"]), moment(batch["negative"]), strict=True
    ):
        assert torch.allclose(parameter.grad, negative - data, atol=1e-5)


def test_filters_that_are_too_active_become_less_so() -> None:
    task = build(size=10, kernel=3, sparsity_target=0.1)
    task.mean_activity.copy_(torch.tensor([[0.3, 0.05]]))
    batch = task.transform(canvases(torch.rand(8, 1, 10, 10)))
    task.loss(task.predict(batch), batch)["sparsity"].backward()
    assert task.encoder.biases[0].grad[0] > 0 > task.encoder.biases[0].grad[1] and task.encoder.weights[0].grad is None


def test_layers_are_trained_one_after_the_other() -> None:
    task = build("3-4", size=20, kernel=3)
    batch = task.transform(canvases(torch.rand(8, 1, 20, 20)))
    assert batch["layer"] == "0" and batch["data"].shape == (8, 1, 20, 20)
    task.clock.step = 70
    batch = task.transform(canvases(torch.rand(8, 1, 20, 20)))
    assert batch["layer"] == "1" and batch["data"].shape == (8, 3, 9, 9)  # 18 × 18 units in blocks of 2 × 2
    assert torch.allclose(batch["data"], task.encoder.layers(batch["image"])[0])
    assert ((batch["negative"] > 0) & (batch["negative"] < 1)).all()
    task.loss(task.predict(batch), batch)["divergence"].backward()
    assert task.encoder.weights[0].grad is None and task.encoder.weights[1].grad.abs().max() > 0
    assert task.encoder(batch["image"]).shape == (8, 16)


def test_what_is_refused() -> None:
    with pytest.raises(SslkitError, match="--size: 9 px are too few for 2 layers of 3×3 filters"):
        build("3-4", size=9, kernel=3)
    with pytest.raises(SslkitError, match=r"whole numbers, from 2 and 1 to 256 \(got 1, 2\)"):
        build("3", kernel=1)
    with pytest.raises(SslkitError, match="65,536 bases at most"):
        build("9999999999")
    with pytest.raises(SslkitError, match="bases of conv_rbm_stack should be numbers such as 24-100"):
        build("3,4")
