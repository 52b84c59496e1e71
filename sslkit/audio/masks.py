"""Masks of frames: spans within recordings."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def span_mask(recorded: Tensor, ratio: float, span: int) -> Tensor:
    """Mask spans of the `recorded` frames, bool `[B, N]`: about `ratio` of them, and at least one span in each recording.

    Spans begin independently at each frame and may overlap (Baevski et al., 2020, section 3.1).
    """
    start_rate = 1 - math.pow(1 - ratio, 1 / span)  # so that a frame is in none of the spans that may cover it so often
    random = torch.rand(recorded.shape, device=recorded.device).masked_fill(~recorded, 2.0)
    starts = (random < start_rate) | (random == random.amin(dim=1, keepdim=True))
    mask = starts
    for shift in range(1, span):
        mask = mask | F.pad(starts, (shift, 0))[:, : starts.shape[1]]
    return mask & recorded
