"""A weighted sum of all layers, its weights learned beside a linear classifier (Peters et al., 2018, equation 1)."""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.notes import LAYER_WEIGHTS
from sslkit.evaluation.session import Layers, Predictor, TrainingView

_EPOCHS, _STEPS, _BATCH, _RATE = 10, 200, 256, 0.01  # at least so many epochs, and steps


class MixedPredictor(Predictor):
    """A predictor from the weighted sum of all layers."""

    def __init__(self, predictor: Predictor, weights: list[float], scales: list[float]) -> None:
        self.predictor, self.weights, self.scales = predictor, weights, scales
        self.n_train, self.held_out = predictor.n_train, predictor.held_out
        self.chosen = {LAYER_WEIGHTS: [round(weight, 3) for weight in weights], **predictor.chosen}

    def scores(self, layers: Layers) -> Tensor:
        """Return class scores `[M, classes]`."""
        return self.predictor.scores(mix_layers(layers, self.weights, self.scales))


def fit_mixed(train: TrainingView, seed: int, held_out: float, fit: Callable[[TrainingView], Predictor]) -> MixedPredictor:
    """Learn the weights of all layers, and fit a predictor to their sum.

    What `fit` holds out to choose on, a share of `held_out` drawn by the seed, takes no part in the weights.
    """
    scales = [float(values.double().std()) + 1e-6 for values in train.layers.values()]
    weights = learn_weights(train, torch.from_numpy(train.hold_out(held_out, seed)[0]), scales, seed)
    return MixedPredictor(fit(replace(train, layers=mix_layers(train.layers, weights, scales))), weights, scales)


def learn_weights(train: TrainingView, kept: Tensor, scales: list[float], seed: int) -> list[float]:
    """Return a weight for each layer, which add up to 1, learned by Adam with a linear classifier of the `kept` rows.

    Each layer is divided by its scale. Raises SslkitError for layers that are not all as wide.
    """
    features = list(train.layers.values())
    if len({values.shape[1] for values in features}) > 1:
        widths = ", ".join(str(values.shape[1]) for values in features)
        raise SslkitError(f"layers have different widths ({widths})", "choose one of them", flag="layer")
    seed_stage(seed, "mix", 0)
    device = train.device
    scores = torch.zeros(len(features), device=device, requires_grad=True)
    classifier = torch.nn.Linear(features[0].shape[1], len(train.classes), device=device)
    optimizer = torch.optim.Adam([scores, *classifier.parameters()], lr=_RATE)
    epochs = max(_EPOCHS, math.ceil(_STEPS * _BATCH / len(kept)))
    batches = [rows for _ in range(epochs) for rows in kept[torch.randperm(len(kept))].split(_BATCH)]
    with show_progress("weighting layers", len(batches)) as progress:
        for rows in batches:
            scaled = [values[rows].to(device, torch.float32) / scale for values, scale in zip(features, scales, strict=True)]
            mixed = (scores.softmax(dim=0)[:, None, None] * torch.stack(scaled)).sum(dim=0)
            optimizer.zero_grad()
            F.cross_entropy(classifier(mixed), train.labels[rows].to(device)).backward()
            optimizer.step()
            progress.advance()
    return [float(weight) for weight in scores.detach().softmax(dim=0)]


def mix_layers(layers: Layers, weights: list[float], scales: list[float]) -> Layers:
    """Return the weighted sum of layers `[N, D]`, each divided by its scale, as the layer `mix`."""
    features = list(layers.values())
    mixed = torch.zeros_like(features[0], dtype=torch.float32)
    for values, weight, scale in zip(features, weights, scales, strict=True):
        mixed += values * (weight / scale)
    return {"mix": mixed}
