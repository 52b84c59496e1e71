"""Losses of classifiers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def classification_loss(logits: Tensor, target: Tensor, smoothing: float = 0.0, sigmoid: bool = False) -> Tensor:
    """Return the cross-entropy of each sample, `[B]`, of logits and targets `[B, classes]`: shares of classes, or 0 and 1.

    Of a softmax; with `sigmoid` of each class by itself, averaged over classes. `smoothing` is the share of a target that is
    spread over all classes, of a sigmoid over both outcomes (Szegedy et al., 2016).
    """
    if sigmoid:
        smoothed = target * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smoothed, reduction="none").mean(dim=1)
    smoothed = target * (1 - smoothing) + smoothing / target.shape[1]
    return -(smoothed * logits.log_softmax(dim=1)).sum(dim=1)


def top_class_correct(logits: Tensor, target: Tensor) -> Tensor:
    """Return whether the likeliest class is (one of) the label(s), 0 or 1, `[B]`; of mixed samples, the larger share's."""
    chosen = target.gather(1, logits.argmax(dim=1, keepdim=True))[:, 0]
    return (chosen >= torch.amax(target, dim=1)).float()
