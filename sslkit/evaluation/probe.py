"""`sslkit probe`: linear classifiers on frozen features."""

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import ProgressReporter, duration, show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Protocol
from sslkit.contract.result import Result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.layer_mix import fit_mixed
from sslkit.evaluation.session import (
    EvaluationSession,
    FeatureEvaluation,
    Layers,
    Predictor,
    Settings,
    TrainingView,
    resolve_protocol,
)
from sslkit.evaluation.solvers import Loss, Standardized, cross_entropy, fit_linear, linear_scores, squared_hinge
from sslkit.specs.evaluation import ProbeSpec

_SHARED = {"held_out": 0.2, "seeds": 1}
_C_GRID = [0.001, 0.01, 0.1, 1.0, 10.0]
_SVM_GRID = [0.0001, 0.001, 0.01, 0.1, 1.0]
_RATES = [0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0]


class Probe(FeatureEvaluation):
    """Fit a linear classifier on the features of a frozen encoder."""

    classifies = True
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
            "probe/chosen-layer-v1",
            "as probe/logreg-v1, on the layer chosen on a fifth of the training part",
            {"c": _C_GRID, "iterations": 300, "layer": "auto", **_SHARED},
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
        if "lr" in settings and settings["layer"] in ("auto", "mix"):
            raise SslkitError(f"{spec.protocol} chooses among all layers itself", "leave --layer out", flag="layer")
        self.loss = squared_hinge if spec.protocol == "probe/svm-v1" else cross_entropy
        if (
            settings["layer"] == "all"
            and "layers" not in session.models[0].encoder.provides
            and "layer" not in spec.model_fields_set
        ):
            settings["layer"] = "last"
        return protocol, settings

    def fits_layers_together(self, settings: Settings) -> bool:
        """Return whether this is the sweep, which chooses among layers, or a mix of them."""
        return "lr" in settings or settings["layer"] == "mix"

    def fit(self, train: TrainingView, settings: Settings, seed: int) -> Predictor:
        """Return the linear classifier chosen on held-out training data and fitted on all of it."""
        if "lr" in settings:
            return fit_sweep(train, seed, settings)
        if settings["layer"] == "mix":
            return fit_mixed(train, seed, settings["held_out"], lambda mixed: fit_over_c(mixed, seed, settings, self.loss))
        return fit_over_c(train, seed, settings, self.loss)


def probe(spec: ProbeSpec) -> Result:
    """Evaluate a checkpoint by a linear probe, as `sslkit probe` does."""
    return Probe().run(spec)


class LinearClassifier(Predictor):
    """Weights `[D + 1, classes]` on features standardized as those they were fitted on."""

    def __init__(self, weights: Tensor, fitted: Standardized) -> None:
        self.weights, self.n_train = weights, len(fitted)
        self.mean, self.deviation, self.device = fitted.mean, fitted.deviation, fitted.device

    def scores(self, layers: Layers) -> Tensor:
        """Return class scores `[M, classes]`."""
        (features,) = layers.values()
        data = Standardized(features, self.mean, self.deviation, self.device)
        return torch.cat([scores.cpu() for scores in linear_scores(self.weights, data)])


class LinearHead(Predictor):
    """The head that won a sweep, and the layer it reads."""

    def __init__(self, heads: "Heads", layer: str, fitted: Standardized) -> None:
        self.heads, self.layer, self.n_train = heads, layer, len(fitted)
        self.mean, self.deviation, self.device = fitted.mean, fitted.deviation, fitted.device

    def scores(self, layers: Layers) -> Tensor:
        """Return class scores `[M, classes]`."""
        data = Standardized(layers[self.layer], self.mean, self.deviation, self.device)
        return torch.cat([_logits(self.heads, features)[0].cpu() for features, _ in data.chunks(self.heads[0].shape[2])])


def fit_over_c(train: TrainingView, seed: int, settings: Settings, loss: Loss) -> LinearClassifier:
    """Choose C on a part held out of the training part, then fit on all of it."""
    grid, iterations, classes = _as_list(settings["c"]), settings["iterations"], len(train.classes)
    data, labels = Standardized.of(train.features, train.device), train.labels.to(train.device)
    c, start, accuracies = grid[0], None, list[float]()
    fits = len(grid) + 1 if len(grid) > 1 else 1
    with show_progress("fitting", fits * 2 * iterations) as progress:
        fitting = _FitProgress(progress, fits, 2 * iterations)
        if len(grid) > 1:
            kept, held_out = (torch.from_numpy(rows) for rows in train.hold_out(settings["held_out"], seed))
            kept_data, kept_labels = data.select(kept), train.labels[kept].to(train.device)
            held_out_data, held_out_labels = data.select(held_out), train.labels[held_out]
            solutions = []
            for c in grid:
                start = fit_linear(kept_data, kept_labels, classes, c, loss, iterations, start, fitting.start(c))
                solutions.append(start)
                predicted = torch.cat([scores.argmax(dim=1).cpu() for scores in linear_scores(start, held_out_data)])
                accuracies.append((predicted == held_out_labels).double().mean().item())
            best = int(np.argmax(accuracies))  # the first of equals
            c, start = grid[best], solutions[best]
        weights = fit_linear(data, labels, classes, c, loss, iterations, start, fitting.start(c))
        fitting.finish()
    classifier = LinearClassifier(weights, data)
    classifier.chosen = {"c": c}
    classifier.held_out = dict(zip(map(str, grid), accuracies, strict=True)) if accuracies else {}
    return classifier


class _FitProgress:
    """Show the progress of several fits, each of so many evaluations at most; nearly all need far fewer."""

    def __init__(self, progress: ProgressReporter, fits: int, evaluations: int) -> None:
        self.progress, self.fits, self.evaluations = progress, fits, evaluations
        self.fit, self.count, self.started_at = 0, 0, time.monotonic()

    def start(self, c: float) -> Callable[[float], None]:
        """Return what to call with each value of the objective of the next fit."""
        self.finish()
        self.fit += 1

        def report(objective: float) -> None:
            self.count += 1
            seconds = (time.monotonic() - self.started_at) / self.count
            left = f"at most {duration(seconds * max(0, self.fits * self.evaluations - self.progress.done - 1))} left"
            self.progress.advance(1, f"C {c:g}, objective {objective:.4f}", f"{seconds:.2g} s each", left=left)

        return report

    def finish(self) -> None:
        """Count the evaluations that the fit did not need."""
        self.progress.advance(self.fit * self.evaluations - self.progress.done)


def fit_sweep(train: TrainingView, seed: int, settings: Settings) -> LinearHead:
    """Train a head for every layer and rate; choose on a held-out part; train the chosen one on everything.

    One layer at a time is on the device; all see the same batches.
    """
    rates, classes = _as_list(settings["lr"]), len(train.classes)
    kept, held_out = (torch.from_numpy(rows) for rows in train.hold_out(settings["held_out"], seed))
    kept_labels = train.labels[kept].to(train.device)
    accuracies: dict[tuple[str, float], float] = {}
    for name, features in train.layers.items():
        data = Standardized.of(features, train.device, kept)
        heads = train_heads(data.select(kept), kept_labels, classes, rates, seed, settings, f"heads on layer {name}")
        chunks = data.select(held_out).chunks(classes * len(rates))
        predicted = torch.cat([_logits(heads, chunk).argmax(dim=2).cpu() for chunk, _ in chunks], dim=1)
        shares = (predicted == train.labels[held_out]).double().mean(dim=1).tolist()
        accuracies |= {(name, rate): share for rate, share in zip(rates, shares, strict=True)}
    name, rate = max(accuracies, key=lambda choice: accuracies[choice])  # the first of equals
    everything = Standardized.of(train.layers[name], train.device)
    title, labels = f"the head on layer {name}", train.labels.to(train.device)
    head = LinearHead(train_heads(everything, labels, classes, [rate], seed, settings, title), name, everything)
    head.chosen = {"layer": name, "lr": rate}
    head.held_out = {layer: max(accuracies[layer, each] for each in rates) for layer in train.layers}
    return head


Heads = tuple[Tensor, Tensor]  # weights [G, width, classes], biases [G, 1, classes]: a head for each of G rates


@torch.no_grad()
def train_heads(
    data: Standardized,
    labels: Tensor,
    classes: int,
    rates: list[float],
    seed: int,
    settings: dict[str, Any],
    title: str = "heads",
) -> Heads:
    """Train a linear head for each rate by SGD with momentum and a cosine to 0; all see the same batches.

    Labels are int64 `[N]` on the device.
    """
    seed_stage(seed, "sweep", 0)
    device, samples = data.device, len(data)
    peak = torch.tensor(rates)[:, None, None].to(device)
    shape = len(rates), data.features.shape[1], classes
    heads = torch.zeros(shape, device=device), torch.zeros(len(rates), 1, classes, device=device)
    velocities = [torch.zeros_like(parameter) for parameter in heads]
    batch, epochs = min(settings["head_batch"], samples), settings["head_epochs"]
    steps = epochs * (samples // batch)
    order = torch.cat([torch.randperm(samples)[: samples // batch * batch] for _ in range(epochs)]).to(data.features.device)
    with show_progress(f"training {title}", steps) as progress:
        for step, rows in enumerate(order.split(batch)):
            share = 0.5 * (1 + np.cos(np.pi * step / steps))
            x, targets = data.batch(rows), F.one_hot(labels[rows.to(device)], classes).float()
            # The gradient of softmax cross-entropy, for all rates at once.
            error = (_logits(heads, x).softmax(dim=2) - targets) / len(rows)
            gradients = x.T @ error, error.sum(dim=1, keepdim=True)
            for parameter, velocity, gradient in zip(heads, velocities, gradients, strict=True):
                velocity.mul_(settings["head_momentum"]).add_(gradient)
                parameter.sub_(peak * share * velocity)
            progress.advance()
    return heads


def _logits(heads: Heads, features: Tensor) -> Tensor:
    """Return `[G, N, classes]`."""
    weight, bias = heads
    return features @ weight + bias


def _as_list(value: float | list[float]) -> list[float]:
    return value if isinstance(value, list) else [value]
