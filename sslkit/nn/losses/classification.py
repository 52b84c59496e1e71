"""Losses of classifiers."""

import torch
import torch.nn.functional as F
from torch import Tensor


def class_targets(label: Tensor, classes: int, sigmoid: bool = False) -> Tensor:
    """Return targets `[B, classes]` of labels `[B]`, or `[B, classes]` of 0 and 1 where samples have several.

    Without `sigmoid`, each of k labels has a share of 1/k (Mahajan et al., 2018).
    """
    target = F.one_hot(label, classes).float() if label.dim() == 1 else label.float()
    return target if sigmoid else target / target.sum(dim=1, keepdim=True).clamp(min=1)


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
