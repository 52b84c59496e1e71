"""Batches of images as a source delivers them."""

import torch
from torch import Tensor


def canvases(images: Tensor, **more: Tensor) -> dict[str, Tensor]:
    """Return square images `[B, C, S, S]` as a batch of canvases, and what else it has."""
    return {"canvas": images, "aspect": torch.ones(len(images), device=images.device), **more}
