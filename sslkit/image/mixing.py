"""Mixup and CutMix: of images and targets, or of what a block of an encoder makes of images."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributions import Beta


@dataclass(frozen=True)
class Mixing:
    """Which image each one is mixed with, and how much of it stays.

    `partner` is int64 `[B]`, `kept` `[B]` the share of the image itself; `box` `[B, 4]` (top, left, bottom, right, as fractions
    of the image) is what CutMix replaces, None for mixup.
    """

    partner: Tensor
    kept: Tensor
    box: Tensor | None

    def mix_targets(self, target: Tensor) -> Tensor:
        """Mix targets `[B, classes]`."""
        kept = self.kept[:, None]
        return kept * target + (1 - kept) * target[self.partner]


def draw_mixing(known: Tensor, mixup: float, cutmix: float) -> Mixing:
    """Draw a mixing of samples whose label is `known` `[B]`: by mixup or CutMix, whichever alpha is above 0, by chance if both.

    Shares follow Beta(alpha, alpha) (Zhang et al., 2018; Yun et al., 2019). Others are neither mixed nor mixed in.
    """
    device = known.device
    cuts = cutmix > 0 and (mixup == 0 or bool(torch.rand(()) < 0.5))
    alpha = torch.full((len(known),), cutmix if cuts else mixup, device=device)
    kept = Beta(alpha, alpha, validate_args=False).sample()
    order = (torch.rand(len(known), device=device) + (~known).float()).argsort()  # labeled samples first
    partner = torch.empty_like(order).scatter_(0, order, order.roll(-1))
    kept = torch.where(known & known[partner], kept, 1.0)
    if not cuts:
        return Mixing(partner, kept, None)
    extent = (1 - kept).sqrt()[:, None].expand(-1, 2)
    center = torch.rand(len(known), 2, device=device)
    box = torch.cat([center - extent / 2, center + extent / 2], dim=1).clamp(0, 1)  # cut off at the border, as in the paper
    area = (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1])
    return Mixing(partner, 1 - area, box)


def mix(first: Tensor, second: Tensor, kept: Tensor, box: Tensor | None, prefix: int = 0) -> Tensor:
    """Mix images or feature maps `[B, C, h, w]`, or tokens `[B, prefix + N, D]` of a square grid, row by row.

    What a box covers of a pixel or token is of the `second`; tokens before the patches are mixed by `kept`.
    """
    if first.dim() == 4:
        weight = kept[:, None, None, None] if box is None else 1 - _coverage(box, *first.shape[-2:])[:, None]
    elif first.dim() == 3:
        weight = kept[:, None, None].expand(-1, first.shape[1], 1)
        if box is not None:
            side = round((first.shape[1] - prefix) ** 0.5)
            weight = torch.cat([weight[:, :prefix], 1 - _coverage(box, side, side).flatten(1)[..., None]], dim=1)
    else:
        weight = kept[:, None]
    weight = weight.to(first.dtype)
    return weight * first + (1 - weight) * second


def _coverage(box: Tensor, height: int, width: int) -> Tensor:
    """Return which part of each cell of a grid boxes `[B, 4]` cover, `[B, height, width]`."""
    parts = []
    for start, end, side in ((box[:, 0], box[:, 2], height), (box[:, 1], box[:, 3], width)):
        edge = torch.arange(side + 1, device=box.device) / side
        overlap = torch.minimum(end[:, None], edge[1:]) - torch.maximum(start[:, None], edge[:-1])
        parts.append(overlap.clamp(min=0) * side)
    return parts[0][:, :, None] * parts[1][:, None, :]
