"""`sslkit probe`: linear classifiers on frozen features."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import show_progress
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.session import Evaluation, Fitted, Layers, Result, classify, open_evaluation, settle
from sslkit.evaluation.solvers import Loss, cross_entropy, fit_linear, linear_scores, squared_hinge
from sslkit.evaluation.splits import held_out_rows
from sslkit.specs.evaluation import ProbeSpec

_PIXELS = 16  # raw images of 32 px have more numbers than a linear classifier can use, or fit soon


def probe(spec: ProbeSpec) -> Result:
    """Evaluate a checkpoint by a linear probe; everything `sslkit probe` does."""
    return probe_of(open_evaluation(spec, _PIXELS), spec)


def probe_of(evaluation: Evaluation, spec: ProbeSpec) -> Result:
    """Return the probe's result of an evaluation that is open."""
    protocol, settings = settle(spec, spec.protocol)
    classes, sweeps = evaluation.parts.classes, "lr" in settings
    if (
        settings["layer"] == "all"
        and "layers" not in evaluation.models[0].encoder.offers
        and "layer" not in spec.model_fields_set
    ):
        settings["layer"] = "last"  # the only one there is

    def fit(layers: Layers, labels: Tensor, seed: int) -> Fitted:
        if sweeps:
            return fit_sweep(layers, labels, seed, classes, settings)
        (features,) = layers.values()
        loss = cross_entropy if spec.protocol.startswith("probe/logreg") else squared_hinge
        return fit_over_c(features, labels, seed, classes, settings, loss)

    return evaluation.result("probe", protocol, settings, classify(evaluation, fit, settings, together=sweeps))


def fit_over_c(
    features: Tensor, labels: Tensor, seed: int, classes: tuple[str, ...], settings: dict[str, Any], loss: Loss
) -> Fitted:
    """Choose C on a slice held out of the training part, then fit on all of it."""
    grid, iterations = _listed(settings["c"]), settings["iterations"]
    mean, deviation = _statistics(features)
    standard, told = ((features - mean) / deviation).numpy(), labels.numpy()
    c, start = grid[0], None
    chosen: dict[str, Any] = {}
    with show_progress("fitting", len(grid) + 1 if len(grid) > 1 else 1) as progress:
        if len(grid) > 1:
            kept, held_out = held_out_rows(told, seed, classes, settings["held_out"])
            solutions, accuracies = [], []
            for c in grid:
                start = fit_linear(standard[kept], told[kept], len(classes), c, loss, iterations, start)
                solutions.append(start)
                accuracies.append(float((linear_scores(start, standard[held_out]).argmax(axis=1) == told[held_out]).mean()))
                progress.advance()
            best = int(np.argmax(accuracies))  # the first of equals
            c, start = grid[best], solutions[best]
            chosen["held_out"] = dict(zip(map(str, grid), accuracies, strict=True))
        weights = fit_linear(standard, told, len(classes), c, loss, iterations, start)
        progress.advance()

    def predict(shown: Layers) -> Tensor:
        (test,) = shown.values()
        return torch.from_numpy(linear_scores(weights, ((test - mean) / deviation).numpy()))

    return Fitted(predict, {"c": c, **chosen}, len(features))


def fit_sweep(layers: Layers, labels: Tensor, seed: int, classes: tuple[str, ...], settings: dict[str, Any]) -> Fitted:
    """Train a head for every layer and rate at once; choose on a held-out slice; train the chosen one on everything."""
    rates = _listed(settings["lr"])
    kept, held_out = (torch.from_numpy(rows) for rows in held_out_rows(labels.numpy(), seed, classes, settings["held_out"]))
    statistics = {name: _statistics(features[kept]) for name, features in layers.items()}
    standard = {name: (features - statistics[name][0]) / statistics[name][1] for name, features in layers.items()}
    heads = train_heads({name: one[kept] for name, one in standard.items()}, labels[kept], len(classes), rates, seed, settings)
    accuracies = {
        (name, rate): (_logits(heads[name], standard[name][held_out])[number].argmax(dim=1) == labels[held_out])
        .double()
        .mean()
        .item()
        for name in layers
        for number, rate in enumerate(rates)
    }
    name, rate = max(accuracies, key=lambda choice: accuracies[choice])  # the first of equals
    mean, deviation = _statistics(layers[name])
    final = train_heads({name: (layers[name] - mean) / deviation}, labels, len(classes), [rate], seed, settings)[name]
    best = {layer: max(accuracies[layer, each] for each in rates) for layer in layers}

    def predict(shown: Layers) -> Tensor:
        return _logits(final, (shown[name] - mean) / deviation)[0]

    return Fitted(predict, {"layer": name, "lr": rate, "held_out": best}, len(labels))


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
            wanted = F.one_hot(labels[rows], classes).float()
            for name, features in layers.items():
                x = features[rows]
                # The gradient of softmax cross-entropy, for all rates at once.
                error = (_logits(heads[name], x).softmax(dim=2) - wanted) / len(rows)
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


def _listed(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]
