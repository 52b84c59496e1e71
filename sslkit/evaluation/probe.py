"""`sslkit probe`: linear classifiers on frozen features."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.evaluation import Protocol
from sslkit.contract.result import Result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.session import (
    EvaluationSession,
    FeatureEvaluation,
    Layers,
    Predictor,
    Settings,
    TrainingView,
    resolve_protocol,
)
from sslkit.evaluation.solvers import Loss, Matrix, cross_entropy, fit_linear, linear_scores, squared_hinge
from sslkit.specs.evaluation import ProbeSpec

_SHARED = {"held_out": 0.2, "seeds": 1}
_C_GRID = [0.001, 0.01, 0.1, 1.0, 10.0]
_SVM_GRID = [0.0001, 0.001, 0.01, 0.1, 1.0]
_RATES = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


class Probe(FeatureEvaluation):
    """Fit a linear classifier on the features of a frozen encoder."""

    verb = "probe"
    Options = ProbeSpec
    baseline_pixels = 16  # raw images of 32 px have more values than a linear classifier can use, or fit in reasonable time
    protocols = (
        Protocol(
            "probe/logreg-v1",
            "logistic regression on standardized features by L-BFGS; C chosen on a fifth of the training part",
            {"c": _C_GRID, "iterations": 300, **_SHARED},
        ),
        Protocol(
            "probe/sweep-v1",
            "linear heads on every layer by SGD, 20 epochs of batch 256; layer and rate chosen on a fifth of the training part",
            {"lr": _RATES, "layer": "all", "head_epochs": 20, "head_batch": 256, "head_momentum": 0.9, **_SHARED},
        ),
        Protocol(
            "probe/svm-v1",
            "linear SVM, one against the rest, on standardized features; C chosen on a fifth of the training part",
            {"c": _SVM_GRID, "iterations": 300, **_SHARED},
        ),
    )

    def resolve(self, spec: Any, session: EvaluationSession) -> tuple[str | None, Settings]:
        """Return the protocol's id and the settings, with the layers that the encoder has."""
        protocol, settings = resolve_protocol(self, spec)
        self.loss = squared_hinge if spec.protocol == "probe/svm-v1" else cross_entropy
        if (
            settings["layer"] == "all"
            and "layers" not in session.models[0].encoder.provides
            and "layer" not in spec.model_fields_set
        ):
            settings["layer"] = "last"
        return protocol, settings

    def fits_layers_together(self, settings: Settings) -> bool:
        """Return whether this is the sweep, which chooses among layers."""
        return "lr" in settings

    def fit(self, train: TrainingView, settings: Settings, seed: int) -> Predictor:
        """Return the linear classifier chosen on held-out training data and fitted on all of it."""
        if self.fits_layers_together(settings):
            return fit_sweep(train, seed, settings)
        return fit_over_c(train, seed, settings, self.loss)


def probe(spec: ProbeSpec) -> Result:
    """Evaluate a checkpoint by a linear probe, as `sslkit probe` does."""
    return Probe().run(spec)


class LinearClassifier(Predictor):
    """Weights `[D + 1, classes]` on standardized features."""

    def __init__(self, weights: Matrix, mean: Tensor, deviation: Tensor, n_train: int) -> None:
        self.weights, self.mean, self.deviation, self.n_train = weights, mean, deviation, n_train

    def scores(self, layers: Layers) -> Tensor:
        """Return class scores `[M, classes]`."""
        (features,) = layers.values()
        return torch.from_numpy(linear_scores(self.weights, ((features - self.mean) / self.deviation).numpy()))


class LinearHead(Predictor):
    """The head that won a sweep, and the layer it reads."""

    def __init__(self, heads: "Heads", layer: str, mean: Tensor, deviation: Tensor, n_train: int) -> None:
        self.heads, self.layer, self.mean, self.deviation, self.n_train = heads, layer, mean, deviation, n_train

    def scores(self, layers: Layers) -> Tensor:
        """Return class scores `[M, classes]`."""
        return _logits(self.heads, (layers[self.layer] - self.mean) / self.deviation)[0]


def fit_over_c(train: TrainingView, seed: int, settings: Settings, loss: Loss) -> LinearClassifier:
    """Choose C on a part held out of the training part, then fit on all of it."""
    grid, iterations, classes = _as_list(settings["c"]), settings["iterations"], len(train.classes)
    features = train.features
    mean, deviation = _statistics(features)
    standard, labels = ((features - mean) / deviation).numpy(), train.labels.numpy()
    c, start = grid[0], None
    accuracies: list[float] = []
    with show_progress("fitting", len(grid) + 1 if len(grid) > 1 else 1) as progress:
        if len(grid) > 1:
            kept, held_out = train.hold_out(settings["held_out"], seed)
            solutions = []
            for c in grid:
                start = fit_linear(standard[kept], labels[kept], classes, c, loss, iterations, start)
                solutions.append(start)
                predicted = linear_scores(start, standard[held_out]).argmax(axis=1)
                accuracies.append(float((predicted == labels[held_out]).mean()))
                progress.advance()
            best = int(np.argmax(accuracies))  # the first of equals
            c, start = grid[best], solutions[best]
        weights = fit_linear(standard, labels, classes, c, loss, iterations, start)
        progress.advance()
    classifier = LinearClassifier(weights, mean, deviation, len(features))
    classifier.chosen = {"c": c}
    classifier.held_out = dict(zip(map(str, grid), accuracies, strict=True)) if accuracies else {}
    return classifier


def fit_sweep(train: TrainingView, seed: int, settings: Settings) -> LinearHead:
    """Train a head for every layer and rate at once; choose on a held-out part; train the chosen one on everything."""
    rates, classes, labels = _as_list(settings["lr"]), len(train.classes), train.labels
    kept, held_out = (torch.from_numpy(rows) for rows in train.hold_out(settings["held_out"], seed))
    standard = {}
    for name, features in train.layers.items():
        mean, deviation = _statistics(features[kept])
        standard[name] = (features - mean) / deviation
    training = {name: features[kept] for name, features in standard.items()}
    heads = train_heads(training, labels[kept], classes, rates, seed, settings)
    accuracies = {
        (name, rate): (_logits(heads[name], standard[name][held_out])[number].argmax(dim=1) == labels[held_out])
        .double()
        .mean()
        .item()
        for name in train.layers
        for number, rate in enumerate(rates)
    }
    name, rate = max(accuracies, key=lambda choice: accuracies[choice])  # the first of equals
    mean, deviation = _statistics(train.layers[name])
    final = train_heads({name: (train.layers[name] - mean) / deviation}, labels, classes, [rate], seed, settings)[name]
    head = LinearHead(final, name, mean, deviation, len(labels))
    head.chosen = {"layer": name, "lr": rate}
    head.held_out = {layer: max(accuracies[layer, each] for each in rates) for layer in train.layers}
    return head


Heads = tuple[Tensor, Tensor]  # weights [G, width, classes], biases [G, 1, classes]: a head for each of G rates


def train_heads(
    layers: Layers, labels: Tensor, classes: int, rates: list[float], seed: int, settings: dict[str, Any]
) -> dict[str, Heads]:
    """Train linear heads by SGD with momentum and a cosine to 0: all layers and rates see the same batches."""
    seed_stage(seed, "sweep", 0)
    peak = torch.tensor(rates)[:, None, None]
    heads = {
        name: (torch.zeros(len(rates), features.shape[1], classes), torch.zeros(len(rates), 1, classes))
        for name, features in layers.items()
    }
    velocities = {name: (torch.zeros_like(weight), torch.zeros_like(bias)) for name, (weight, bias) in heads.items()}
    batch, epochs = min(settings["head_batch"], len(labels)), settings["head_epochs"]
    steps = epochs * (len(labels) // batch)
    order = torch.cat([torch.randperm(len(labels))[: len(labels) // batch * batch] for _ in range(epochs)])
    with show_progress("training heads", steps) as progress:
        for step, rows in enumerate(order.split(batch)):
            share = 0.5 * (1 + np.cos(np.pi * step / steps))
            targets = F.one_hot(labels[rows], classes).float()
            for name, features in layers.items():
                x = features[rows]
                # The gradient of softmax cross-entropy, for all rates at once.
                error = (_logits(heads[name], x).softmax(dim=2) - targets) / len(rows)
                for parameter, velocity, gradient in zip(
                    heads[name], velocities[name], (x.T @ error, error.sum(dim=1, keepdim=True)), strict=True
                ):
                    velocity.mul_(settings["head_momentum"]).add_(gradient)
                    parameter.sub_(peak * share * velocity)
            progress.advance()
    return heads


def _logits(heads: Heads, features: Tensor) -> Tensor:
    """Return `[G, N, classes]`."""
    weight, bias = heads
    return features @ weight + bias


def _statistics(features: Tensor) -> tuple[Tensor, Tensor]:
    # In float64: the mean of many float32 would lose digits.
    deviation, mean = torch.std_mean(features.double(), dim=0, correction=0)
    return mean.float(), (deviation + 1e-6).float()


def _as_list(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]
