"""Whether two images are copies: saved again, shifted a little, brighter or of less contrast."""

import torch
import torch.nn.functional as F
from torch import Tensor

COPIES_FROM = 0.9  # 600 planted copies among CIFAR-10 reach 0.96 or more
_SIDE, _COARSE, _SHIFT = 32, 8, 2  # pixels
_COARSE_LIKENESS = 0.7  # below, details are not compared


def gray_thumbnails(canvases: Tensor) -> Tensor:
    """Return gray images of 32 px, uint8 `[B, 32, 32]`, of canvases `[B, C, S, S]` in [0, 1]."""
    gray = canvases.mean(dim=1, keepdim=True)
    small = F.interpolate(gray, size=(_SIDE, _SIDE), mode="bilinear", antialias=True)
    return (255 * small[:, 0].clamp(0, 1)).round().byte()


def detail_correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return the correlation of differences between neighboring pixels, the largest over shifts of two pixels, `[P]`.

    Images are uint8 `[P, 32, 32]`. Smooth images that have only light and shade in common are not alike: their details
    differ. Where not even coarse images are alike, 0.
    """
    images = [pictures.float() for pictures in (first, second)]
    coarse = _correlation(*(F.adaptive_avg_pool2d(pictures[:, None], _COARSE) for pictures in images))
    chosen = (coarse >= _COARSE_LIKENESS).nonzero()[:, 0]
    likeness = torch.zeros(len(first), device=first.device)
    if not len(chosen):
        return likeness
    ours, theirs = (_differences(pictures[chosen]) for pictures in images)
    best = torch.full((len(chosen),), -1.0, device=first.device)
    for down in range(-_SHIFT, _SHIFT + 1):
        for across in range(-_SHIFT, _SHIFT + 1):
            best = torch.maximum(best, _correlation(_cut(ours, down, across), _cut(theirs, -down, -across)))
    likeness[chosen] = best
    return likeness


def _differences(images: Tensor) -> Tensor:
    """Return differences to the pixels below and beside, `[P, 2, 31, 31]`."""
    corner = images[:, :-1, :-1]
    return torch.stack([images[:, 1:, :-1] - corner, images[:, :-1, 1:] - corner], dim=1)


def _cut(maps: Tensor, down: int, across: int) -> Tensor:
    """Return what of maps is left when others are moved over them."""
    side = maps.shape[-1]
    return maps[..., max(0, down) : side + min(0, down), max(0, across) : side + min(0, across)]


def _correlation(first: Tensor, second: Tensor) -> Tensor:
    """Return Pearson's correlation of all values of each, `[P]`; 0 where all are equal."""
    ours, theirs = (maps.flatten(1) - maps.flatten(1).mean(dim=1, keepdim=True) for maps in (first, second))
    scale = (ours.square().sum(dim=1) * theirs.square().sum(dim=1)).sqrt()
    return (ours * theirs).sum(dim=1) / scale.clamp(min=1e-6)
