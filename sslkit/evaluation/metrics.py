"""How right predictions are, how sure that is, and whether two models differ."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Scores:
    """Hold what predictions are worth; shares of 1.

    `top5` is None for five classes or fewer. With several labels per image `top1` says how often the likeliest class is
    one of them, `mean_average_precision` is the mean over classes, `per_class` holds average precisions, and the rest
    is None.
    """

    top1: float
    top5: float | None
    macro_f1: float | None
    balanced_accuracy: float | None
    mean_average_precision: float | None
    per_class: dict[str, float | None]  # None: no image of it in the test part


def classification(scores: Tensor, labels: Tensor, classes: tuple[str, ...]) -> Scores:
    """Return the accuracies of class scores `[N, classes]` for labels `[N]`, or `[N, classes]` of 0 and 1.

    Means over classes are over those in the test part. Top-5 counts a tie against the model, so that classes without
    any vote win nothing.
    """
    if labels.dim() == 2:
        precisions = precision_by_class(scores, labels)
        known = [one for one in precisions if one is not None]
        return Scores(
            top1=right(scores, labels).mean().item(),
            top5=None,
            macro_f1=None,
            balanced_accuracy=None,
            mean_average_precision=float(np.mean(known)) if known else None,
            per_class=dict(zip(classes, precisions, strict=True)),
        )
    predicted, count = scores.argmax(dim=1), len(classes)
    confusion = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count).double()
    hits, present, told = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
    there = present > 0
    recall, f1 = hits / present.clamp(min=1), 2 * hits / (present + told).clamp(min=1)
    own = scores.gather(1, labels[:, None])
    top5 = ((scores >= own).sum(dim=1) <= 5).double().mean().item() if count > 5 else None
    return Scores(
        top1=right(scores, labels).mean().item(),
        top5=top5,
        macro_f1=f1[there].mean().item(),
        balanced_accuracy=recall[there].mean().item(),
        mean_average_precision=None,
        per_class={name: recall[i].item() if there[i] else None for i, name in enumerate(classes)},
    )


def right(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each sample `[N]` whose largest score is (one of) its label(s), else 0; the first class wins a tie."""
    predicted = scores.argmax(dim=1)
    return (predicted == labels if labels.dim() == 1 else labels.gather(1, predicted[:, None])[:, 0]).double()


def average_precision(ranked: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision `[M]` of rankings `[M, N]`, True where the item is relevant; 0 where none is."""
    places = np.arange(1, ranked.shape[1] + 1)
    precision = np.cumsum(ranked, axis=1) / places
    found: NDArray[np.float64] = (precision * ranked).sum(axis=1) / np.maximum(ranked.sum(axis=1), 1)
    return found


def precision_by_class(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Return each class's average precision over samples, for scores and labels (0 or 1) `[N, classes]`; None without any."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    ranked = labels.gather(0, order).T.bool().numpy()
    found, there = average_precision(ranked).tolist(), labels.any(dim=0).tolist()
    return [one if any_of_it else None for one, any_of_it in zip(found, there, strict=True)]
