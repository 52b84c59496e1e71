"""Linear probes: scikit-learn's optimum, choices made on the training part only."""

import numpy as np
import pytest
import torch

from sslkit.evaluation.probe import fit_over_c, fit_sweep
from sslkit.evaluation.session import Layers, TrainingView
from sslkit.evaluation.solvers import cross_entropy, fit_linear, linear_scores, squared_hinge

CLASSES = ("a", "b", "c")
C = {"iterations": 300, "held_out": 0.2}
SWEEP = {"head_epochs": 20, "head_batch": 256, "head_momentum": 0.9, "held_out": 0.2}


def problem(samples: int = 300, width: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Return features and labels of three classes that overlap."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(samples) % 3
    centers = torch.randn(3, width, generator=generator)
    return centers[labels] + 1.5 * torch.randn(samples, width, generator=generator), labels


def training_view(layers: Layers, labels: torch.Tensor, classes: tuple[str, ...] = CLASSES) -> TrainingView:
    rows = np.arange(len(labels))
    return TrainingView(layers, labels, rows, rows, classes)


@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_regression_is_scikit_learns(c: float) -> None:
    from sklearn.linear_model import LogisticRegression

    features, labels = (part.numpy() for part in problem())
    weights = fit_linear(features, labels, 3, c, cross_entropy)
    theirs = LogisticRegression(C=c, tol=1e-8, max_iter=2000).fit(features.astype(np.float64), labels)
    np.testing.assert_allclose(weights[:-1].T, theirs.coef_, atol=2e-3)
    agree = linear_scores(weights, features).argmax(axis=1) == theirs.predict(features)
    assert agree.mean() > 0.99


def test_svm_is_scikit_learns() -> None:
    from sklearn.svm import LinearSVC

    features, labels = (part.numpy() for part in problem())
    weights = fit_linear(features, labels, 3, 0.05, squared_hinge)
    # liblinear regularizes the intercept, too: a large scale makes that nothing.
    theirs = LinearSVC(C=0.05, dual=False, tol=1e-8, intercept_scaling=1000, max_iter=20000).fit(features, labels)
    np.testing.assert_allclose(weights[:-1].T, theirs.coef_, atol=2e-3)


def test_gradients_of_the_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    targets = np.eye(3)[labels.numpy()]
    expected = torch.nn.functional.cross_entropy(scores, labels)
    value, gradient = cross_entropy(scores.detach().numpy(), targets)
    assert value == pytest.approx(expected.item())
    np.testing.assert_allclose(gradient, torch.autograd.grad(expected, scores)[0].numpy(), atol=1e-12)
    signs = torch.from_numpy(2 * targets - 1)
    hinge = (1 - signs * scores).clamp(min=0).square().sum() / 6
    value, gradient = squared_hinge(scores.detach().numpy(), targets)
    assert value == pytest.approx(hinge.item())
    np.testing.assert_allclose(gradient, torch.autograd.grad(hinge, scores)[0].numpy(), atol=1e-12)


def test_c_is_chosen_on_training_data() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(100) % 2
    useful = labels[:, None] + 0.3 * torch.randn(100, 1, generator=generator)
    noisy = torch.cat([useful, 5 * torch.randn(100, 400, generator=generator)], dim=1)  # only a strong penalty keeps it out
    grid = {"c": [0.0001, 0.01, 100.0], **C}
    fitted = fit_over_c(training_view({"x": noisy}, labels, ("a", "b")), 0, grid, cross_entropy)
    assert set(fitted.held_out) == {"0.0001", "0.01", "100.0"}
    assert fitted.held_out[str(fitted.chosen["c"])] == max(fitted.held_out.values())
    alone = fit_over_c(training_view({"x": useful}, labels, ("a", "b")), 0, {"c": 0.5, **C}, cross_entropy)
    assert alone.chosen == {"c": 0.5} and alone.held_out == {}
    assert (alone.scores({"x": useful}).argmax(dim=1) == labels).double().mean() > 0.9


def test_the_sweep_finds_layer_and_rate() -> None:
    features, labels = problem()
    noise = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(1))
    fitted = fit_sweep(training_view({"1": noise, "2": features}, labels), 0, {"lr": [1e-4, 0.1], **SWEEP})
    assert fitted.chosen["layer"] == "2" and fitted.chosen["lr"] in (1e-4, 0.1)
    assert set(fitted.held_out) == {"1", "2"}
    correct = fitted.scores({"1": noise, "2": features}).argmax(dim=1) == labels
    assert correct.double().mean() > 0.6
    again = fit_sweep(training_view({"1": noise, "2": features}, labels), 0, {"lr": [1e-4, 0.1], **SWEEP})
    assert torch.equal(again.scores({"2": features}), fitted.scores({"2": features}))


def test_heads_trained_together_are_heads_trained_alone() -> None:
    from sslkit.evaluation.probe import train_heads

    features, labels = problem()
    together = train_heads({"x": features}, labels, 3, [0.01, 0.1], 0, SWEEP)["x"]
    weight, bias = torch.zeros(12, 3, requires_grad=True), torch.zeros(1, 3, requires_grad=True)
    optimizer = torch.optim.SGD([weight, bias], lr=0.1, momentum=0.9)
    from sslkit.engine.seeds import seed_stage

    seed_stage(0, "sweep", 0)
    batches = torch.cat([torch.randperm(300)[:256] for _ in range(20)]).split(256)
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = 0.1 * 0.5 * (1 + np.cos(np.pi * step / 20))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(features[rows] @ weight + bias, labels[rows]).backward()
        optimizer.step()
    torch.testing.assert_close(together[0][1], weight.detach(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together[1][1], bias.detach(), rtol=1e-4, atol=1e-5)
