"""Heads that stand on an encoder during pretraining."""

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["batch", "layer", "none"]


def mlp(widths: list[int], norm: Norm = "batch", last_norm: bool = False) -> nn.Sequential:
    """Build linear layers of the given widths, input first, with norm and ReLU between them.

    With `norm="batch"` the statistics are those of a micro-batch on one device; `layer` and `none` are exact for any.
    `last_norm` puts a norm without ReLU on the output, as SimCLR's and SimSiam's projectors have.
    """
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        normed = norm != "none" and (last_norm or not last)
        layers.append(nn.Linear(inner, outer, bias=not normed))
        if normed:
            layers.append(nn.BatchNorm1d(outer) if norm == "batch" else nn.LayerNorm(outer))
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Prototypes(nn.Linear):
    """Compare vectors `[..., D]` with prototypes, both of length one: cosines `[..., K]`, as DINO's last layer does."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(width, count, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return cosines `[..., K]`."""
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=1))
