"""Heads on top of an encoder during pretraining, and the options of a projector."""

from itertools import pairwise
from typing import Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit.contract.options import TaskOptions

Norm = Literal["batch", "layer", "none"]


class ProjectorOptions(TaskOptions):
    """Options of a projector; a task overrides fields to set its own defaults and name the paper's values."""

    hidden: int = Field(default=128, ge=1, description="Hidden width of the projector.")
    width: int = Field(default=128, ge=1, description="Output width of the projector.")
    norm: Norm = Field(default="batch", description="Normalization inside the projector.")


def mlp(widths: list[int], norm: Norm = "batch", last_norm: bool = False, last_affine: bool = True) -> nn.Sequential:
    """Build linear layers of the given widths, input first, with norm and ReLU between them.

    With `norm="batch"` the statistics are those of a micro-batch on one device; `layer` and `none` do not depend on its
    size. `last_norm` adds a norm without ReLU to the output, as in the projectors of SimCLR and SimSiam; it has no scale and
    shift of its own unless `last_affine`.
    """
    layers: list[nn.Module] = []
    for i, (inner, outer) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        has_norm = norm != "none" and (last_norm or not last)
        layers.append(nn.Linear(inner, outer, bias=not has_norm))
        if has_norm:
            affine = last_affine or not last
            layers.append(
                nn.BatchNorm1d(outer, affine=affine) if norm == "batch" else nn.LayerNorm(outer, elementwise_affine=affine)
            )
        if not last:
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)


class Prototypes(nn.Linear):
    """Cosine similarities `[..., K]` of vectors `[..., D]` to K learned prototypes, as in DINO's last layer."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__(width, count, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return cosines `[..., K]`."""
        return F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=1))
