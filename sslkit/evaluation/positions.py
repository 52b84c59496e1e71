"""Linear classifiers of positions in samples: words of sentences, frames of recordings."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.result import Metric
from sslkit.evaluation.layer_mix import fit_mixed
from sslkit.evaluation.probe import fit_over_c
from sslkit.evaluation.session import Layers, Predictor, TrainingView
from sslkit.evaluation.solvers import cross_entropy
from sslkit.evaluation.splits import draw_held_out
from sslkit.evaluation.statistics import Totals, interval_of_ratio


class PositionView(TrainingView):
    """The positions of a training part, of which whole samples are held out; `groups` tells the sample of each."""

    def hold_out(self, share: float, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return positions to fit on and positions to choose on: those of a share of the samples, drawn by the seed."""
        assert self.groups is not None
        chosen = draw_held_out(int(self.groups.max()) + 1, share, seed)
        return np.flatnonzero(~chosen[self.groups]), np.flatnonzero(chosen[self.groups])


def fit_positions(
    layers: Layers,
    labels: Sequence[str],
    samples: NDArray[np.int64],
    classes: tuple[str, ...],
    device: torch.device,
    seed: int,
    settings: dict[str, Any],
    layer: str,
) -> dict[str, Predictor]:
    """Return a classifier of the positions with features `[P, width]` for each layer, or one of their weighted sum (`mix`)."""
    places = {label: place for place, label in enumerate(classes)}
    targets = torch.tensor([places[label] for label in labels])
    rows = np.arange(len(targets))
    view = PositionView(layers, targets, rows, rows, classes, device, samples)

    def fit(view: TrainingView) -> Predictor:
        return fit_over_c(view, seed, settings, cross_entropy)

    if layer == "mix":
        return {"mix": fit_mixed(view, seed, settings["held_out"], fit)}
    return {name: fit(replace(view, layers={name: features})) for name, features in layers.items()}


def predict_positions(predictors: dict[str, Predictor], layers: Layers, classes: tuple[str, ...]) -> dict[str, list[str]]:
    """Return the label that each classifier predicts for each position, by its layer."""
    predicted = {}
    for name, predictor in predictors.items():
        scores = predictor.scores(layers if name == "mix" else {name: layers[name]})
        predicted[name] = [classes[place] for place in scores.argmax(dim=1).tolist()]
    return predicted


def recall_by_label(labels: Sequence[str], predicted: Sequence[str]) -> dict[str, float | None]:
    """Return the share of each label's positions that are right."""
    total = Counter(labels)
    hits = Counter(label for label, answer in zip(labels, predicted, strict=True) if label == answer)
    return {label: hits[label] / total[label] for label in sorted(total)}


def ratio_metric(name: str, totals: Totals, n: int, unit: str, resampled: str) -> Metric:
    """Return a ratio of totals as a metric over `n` units, its interval from resampling what is `resampled`."""
    value = float(totals.ratio(np.arange(len(totals.sums))[None])[0])
    low, high, method = interval_of_ratio(totals, resampled)
    return Metric(name, value, low, high, method, n=n, unit_of_n=unit)


def layer_reader(encoder: Encoder, name: str, layer: str) -> Callable[[Tensor], Layers]:
    """Return a function from samples to tokens `[B, T, width]` of the requested layers by name."""
    if layer == "last" or "layers" not in encoder.provides:
        if layer not in ("last", "all"):
            raise SslkitError(f"{name} has no layers", "use last", flag="layer")
        return lambda sample: {"last" if layer == "last" else "1": encoder.tokens(sample)}

    def read(sample: Tensor) -> Layers:
        layers = {str(number): output for number, output in enumerate(encoder.layers(sample), start=1)}
        if layer in ("all", "mix"):
            return layers
        if layer not in layers:
            raise SslkitError(f"{name} has {len(layers)} layers (got {layer})", f"use 1 to {len(layers)}", flag="layer")
        return {layer: layers[layer]}

    return read
