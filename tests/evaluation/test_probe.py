"""Linear probes: scikit-learn's optimum, choices made on the training part only."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sslkit.evaluation import solvers
from sslkit.evaluation.probe import fit_over_c, fit_sweep, train_heads
from sslkit.evaluation.session import Layers, TrainingView
from sslkit.evaluation.solvers import Standardized, cross_entropy, fit_linear, linear_scores, squared_hinge

CPU = torch.device("cpu")
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


def objective(weights: torch.Tensor, data: Standardized, labels: torch.Tensor, c: float) -> float:
    """Return mean loss + ½‖w‖² / (N·C) of all samples, in float64 throughout."""
    features = (data.features.double() - data.mean.double()) / data.deviation.double()
    loss = torch.nn.functional.cross_entropy(features @ weights[:-1] + weights[-1:], labels)
    return float(loss + 0.5 / (c * len(labels)) * weights[:-1].square().sum())


def scikit_learns(data: Standardized, labels: torch.Tensor, c: float) -> torch.Tensor:
    """Return scikit-learn's weights for the same features, `[D + 1, classes]`."""
    from sklearn.linear_model import LogisticRegression

    features = ((data.features.double() - data.mean.double()) / data.deviation.double()).numpy()
    # Newton's method: L-BFGS takes a minute to get there.
    fitted = LogisticRegression(C=c, tol=1e-7, max_iter=5000, solver="newton-cg").fit(features, labels)
    return torch.from_numpy(np.concatenate([fitted.coef_.T, fitted.intercept_[None]]))


@pytest.mark.parametrize("chunk", [2**24, 12 * 41])
@pytest.mark.parametrize("c", [0.01, 1.0])
def test_logistic_regression_is_scikit_learns(c: float, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solvers, "_CHUNK", chunk)
    features, labels = problem()
    data = Standardized.of(features, CPU)
    weights, theirs = fit_linear(data, labels, 3, c, cross_entropy), scikit_learns(data, labels, c)
    torch.testing.assert_close(weights, theirs, rtol=0, atol=2e-3)
    scores = torch.cat(list(linear_scores(weights, data)))
    expected = data.batch(torch.arange(300)).double() @ weights[:-1] + weights[-1:]
    torch.testing.assert_close(scores, expected.float(), rtol=1e-4, atol=1e-5)


def test_the_optimum_on_real_data() -> None:
    """The objective, per sample, lies within 1e-4 of scikit-learn's, and here even within that share of it."""
    from sklearn.datasets import load_digits

    features, labels = (torch.from_numpy(part[:500]) for part in load_digits(return_X_y=True))
    data, start = Standardized.of(features.float(), CPU), None
    for c in (0.001, 0.01, 0.1, 1.0, 10.0):  # the protocol's
        start = fit_linear(data, labels, 10, c, cross_entropy, start=start)
        ours, theirs = (objective(weights, data, labels, c) for weights in (start, scikit_learns(data, labels, c)))
        assert abs(ours - theirs) < 1e-4 * theirs


@pytest.mark.parametrize("standardized", [True, False])
def test_the_optimum_of_correlated_unscaled_features(standardized: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, mixed = torch.randn(400, 6, generator=generator), torch.randn(6, 30, generator=generator)
    features = (hidden @ mixed + 0.01 * torch.randn(400, 30, generator=generator)) * torch.logspace(-2, 2, 30) + 50
    labels = (hidden @ torch.randn(6, 4, generator=generator) + torch.randn(400, 4, generator=generator)).argmax(dim=1)
    data = Standardized.of(features, CPU)
    if not standardized:
        data = replace(data, deviation=torch.ones(30))
    for c in (0.01, 1.0):
        weights, theirs = fit_linear(data, labels, 4, c, cross_entropy), scikit_learns(data, labels, c)
        assert abs(objective(weights, data, labels, c) - objective(theirs, data, labels, c)) < 1e-4


def test_a_fit_of_some_rows_is_a_fit_of_their_copy() -> None:
    features, labels = problem()
    data, rows = Standardized.of(features, CPU), torch.arange(0, 300, 2)
    copied = replace(data, features=features[rows])
    some, copy = (fit_linear(each, labels[rows], 3, 0.1, cross_entropy) for each in (data.select(rows), copied))
    assert torch.equal(some, copy) and len(data.select(rows)) == 150


def test_statistics_are_torchs() -> None:
    features = 1000 + torch.randn(500, 7, generator=torch.Generator().manual_seed(0))
    rows = torch.arange(100, 400)
    mean, deviation = solvers.statistics(features, CPU, rows)
    expected, expected_mean = torch.std_mean(features[rows].double(), dim=0, correction=0)
    torch.testing.assert_close(mean, expected_mean.float(), rtol=0, atol=0)
    torch.testing.assert_close(deviation, (expected + 1e-6).float())


def test_statistics_change_no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a device without float64 sums have the features' own type, and no copy is made by the conversion."""
    monkeypatch.setattr(solvers, "accumulation_type", lambda device: torch.float32)
    features, _ = problem()
    before = features.clone()
    mean, _ = solvers.statistics(features, CPU)
    assert torch.equal(features, before)
    torch.testing.assert_close(mean, features.mean(dim=0))


def test_of_two_classes_both_are_penalized() -> None:
    features, labels = problem()
    labels = labels.clamp(max=1)
    data = Standardized.of(features, CPU)
    weights, theirs = fit_linear(data, labels, 2, 0.1, cross_entropy), scikit_learns(data, labels, 0.2)
    torch.testing.assert_close(weights[:, 1] - weights[:, 0], theirs[:, 0], rtol=0, atol=2e-3)


def test_svm_is_scikit_learns() -> None:
    from sklearn.svm import LinearSVC

    features, labels = problem()
    data = replace(Standardized.of(features, CPU), deviation=torch.ones(12))
    weights = fit_linear(data, labels, 3, 0.05, squared_hinge)
    # liblinear regularizes the intercept, too: a large scale makes that nothing.
    theirs = LinearSVC(C=0.05, dual=False, tol=1e-8, intercept_scaling=1000, max_iter=20000).fit(features - data.mean, labels)
    np.testing.assert_allclose(weights[:-1].T, theirs.coef_, atol=2e-3)


def test_gradients_of_the_losses() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(6, 3, dtype=torch.float64, generator=generator, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    expected = torch.nn.functional.cross_entropy(scores, labels, reduction="none")
    losses, gradient = cross_entropy(scores.detach().clone(), labels)
    torch.testing.assert_close(losses, expected.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(expected.sum(), scores)[0])
    signs = 2 * torch.nn.functional.one_hot(labels, 3) - 1
    hinge = (1 - signs * scores).clamp(min=0).square().sum(dim=1)
    losses, gradient = squared_hinge(scores.detach().clone(), labels)
    torch.testing.assert_close(losses, hinge.detach())
    torch.testing.assert_close(gradient, torch.autograd.grad(hinge.sum(), scores)[0])


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
    features, labels = problem()
    plain = Standardized(features, torch.zeros(12), torch.ones(12), CPU)
    together = train_heads(plain, labels, 3, [0.01, 0.1], 0, SWEEP)
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
