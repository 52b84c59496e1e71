"""Losses against naive loops; heads."""

import math

import pytest
import torch
from torch import nn

from sslkit.nn import mlp, nt_xent


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_nt_xent_against_a_double_loop(temperature: float) -> None:
    projection = torch.randn(5, 2, 7, generator=torch.Generator().manual_seed(0))
    vectors = [view / view.norm() for view in projection.double().flatten(0, 1)]  # 0a 0b 1a 1b ...
    total = 0.0
    for i, anchor in enumerate(vectors):
        partner = i + 1 if i % 2 == 0 else i - 1
        others = sum(math.exp(float(anchor @ other) / temperature) for j, other in enumerate(vectors) if j != i)
        total -= math.log(math.exp(float(anchor @ vectors[partner]) / temperature) / others)
    assert float(nt_xent(projection, temperature)) == pytest.approx(total / 10, rel=1e-5)


def test_nt_xent_piece_by_piece_is_the_same() -> None:
    values = []
    for at_once in (2**22, 3 * 20, 1):  # all vectors, three and one at a time
        projection = torch.randn(10, 2, 7, generator=torch.Generator().manual_seed(0), dtype=torch.double).requires_grad_()
        loss = nt_xent(projection, 0.2, at_once)
        (3 * loss).backward()
        values.append((loss.detach(), projection.grad))
    for loss, gradient in values[1:]:
        assert torch.allclose(loss, values[0][0], rtol=1e-12) and torch.allclose(gradient, values[0][1], rtol=1e-9)
    with torch.no_grad():
        assert torch.allclose(nt_xent(projection, 0.2, 1), values[0][0])


def test_nt_xent_of_half_precision_is_float32() -> None:
    projection = torch.randn(4, 2, 8)
    loss = nt_xent(projection.bfloat16(), 0.1)
    assert loss.dtype == torch.float32


@pytest.mark.parametrize(("norm", "kind"), [("batch", nn.BatchNorm1d), ("layer", nn.LayerNorm), ("none", nn.Identity)])
def test_mlp(norm: str, kind: type[nn.Module]) -> None:
    head = mlp([8, 6, 4], norm, last_norm=True)  # type: ignore[arg-type]
    assert head(torch.randn(3, 8)).shape == (3, 4)
    assert sum(isinstance(layer, kind) for layer in head) == (0 if norm == "none" else 2)
    assert not isinstance(mlp([8, 4])[-1], nn.ReLU)
