"""The weights of layers: those that tell the classes get more."""

import numpy as np
import pytest
import torch

from sslkit import SslkitError
from sslkit.evaluation.layer_mix import fit_mixed, mix_layers
from sslkit.evaluation.probe import fit_over_c
from sslkit.evaluation.session import TrainingView
from sslkit.evaluation.solvers import cross_entropy


def test_the_layer_that_tells_the_classes_weighs_most() -> None:
    random = torch.Generator().manual_seed(0)
    labels = torch.arange(900) % 3
    useful = torch.randn(3, 8, generator=random)[labels] + 0.5 * torch.randn(900, 8, generator=random)
    layers = {"1": 100 * torch.randn(900, 8, generator=random), "2": useful, "3": torch.randn(900, 8, generator=random)}
    rows = np.arange(900)
    view = TrainingView(layers, labels, rows, rows, ("a", "b", "c"))
    settings = {"c": 1.0, "iterations": 100, "held_out": 0.2}
    mixed = fit_mixed(view, 0, 0.2, lambda some: fit_over_c(some, 0, settings, cross_entropy))
    assert mixed.weights[1] == max(mixed.weights) > 0.5 and sum(mixed.weights) == pytest.approx(1)
    assert (mixed.scores(layers).argmax(dim=1) == labels).float().mean() > 0.9
    expected = sum(
        weight * layers[name] / layers[name].double().std() for name, weight in zip(layers, mixed.weights, strict=True)
    )
    assert torch.allclose(mix_layers(layers, mixed.weights, mixed.scales)["mix"], expected.float(), atol=1e-4)
    again = fit_mixed(view, 0, 0.2, lambda some: fit_over_c(some, 0, settings, cross_entropy))
    assert again.weights == mixed.weights  # the seed decides
    with pytest.raises(SslkitError, match=r"layers have different widths \(8, 4\)"):
        fit_mixed(
            TrainingView({"1": useful, "2": useful[:, :4]}, labels, rows, rows, ("a", "b", "c")), 0, 0.2, lambda some: mixed
        )
