"""Accuracies and average precisions of class scores."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.result import Metric
from sslkit.evaluation.statistics import interval_of_mean

TOP1 = "top-1"

ByClass = dict[str, float | None]  # recall, or average precision; None: no sample of the class in the test part


def classification(scores: Tensor, labels: Tensor, classes: tuple[str, ...]) -> tuple[dict[str, float], ByClass]:
    """Return metrics by name, and by class, of class scores `[N, classes]` for labels `[N]`, or `[N, classes]` of 0 and 1.

    All are shares of 1; means over classes are over those in the test part. Top-5 needs more than five classes and counts a
    tie against the model, so that classes without any vote win nothing. With several labels per sample, top-1 is how often
    the likeliest class is one of them, mAP is the mean over classes, and the average precisions are those by class.
    """
    metrics = {TOP1: is_correct(scores, labels).mean().item()}
    if labels.dim() == 2:
        precisions = precision_by_class(scores, labels)
        known = [precision for precision in precisions if precision is not None]
        if known:
            metrics["mAP"] = float(np.mean(known))
        return metrics, dict(zip(classes, precisions, strict=True))
    predicted, count = scores.argmax(dim=1), len(classes)
    confusion = torch.bincount(labels * count + predicted, minlength=count * count).view(count, count).double()
    hits, actual, predictions = confusion.diag(), confusion.sum(dim=1), confusion.sum(dim=0)
    present = actual > 0
    recall, f1 = hits / actual.clamp(min=1), 2 * hits / (actual + predictions).clamp(min=1)
    if count > 5:
        label_scores = scores.gather(1, labels[:, None])
        metrics["top-5"] = ((scores >= label_scores).sum(dim=1) <= 5).double().mean().item()
    metrics["macro F1"] = f1[present].mean().item()
    metrics["balanced accuracy"] = recall[present].mean().item()
    return metrics, {name: recall[i].item() if present[i] else None for i, name in enumerate(classes)}


def score(scores: list[Tensor], labels: Tensor, classes: tuple[str, ...]) -> tuple[list[Metric], ByClass]:
    """Return the metrics, top-1 first, and values by class, of class scores `[M, classes]`, one tensor for each seed.

    They are means over seeds; top-1 has an interval over samples and, with several seeds, the deviation between them.
    """
    by_seed = [classification(seed_scores, labels, classes) for seed_scores in scores]
    correct = torch.stack([is_correct(seed_scores, labels) for seed_scores in scores]).mean(dim=0)
    low, high, method = interval_of_mean(correct)
    deviation = float(np.std([metrics[TOP1] for metrics, _ in by_seed], ddof=1)) if len(scores) > 1 else None
    metrics = []
    for name in by_seed[0][0]:
        value = float(np.mean([metrics[name] for metrics, _ in by_seed]))
        metric = Metric(name, value, seeds=len(scores), n=len(labels))
        if name == TOP1:
            metric = Metric(name, value, low, high, method, deviation, len(scores), len(labels))
        metrics.append(metric)
    return metrics, {name: _mean([by_class[name] for _, by_class in by_seed]) for name in classes}


def is_correct(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each sample `[N]` whose largest score is (one of) its label(s), else 0; the first class wins a tie."""
    predicted = scores.argmax(dim=1)
    return (predicted == labels if labels.dim() == 1 else labels.gather(1, predicted[:, None])[:, 0]).double()


def average_precision(ranked: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the average precision `[M]` of rankings `[M, N]`, True where the item is relevant; 0 where none is."""
    places = np.arange(1, ranked.shape[1] + 1)
    precision = np.cumsum(ranked, axis=1) / places
    average: NDArray[np.float64] = (precision * ranked).sum(axis=1) / np.maximum(ranked.sum(axis=1), 1)
    return average


def precision_by_class(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Return each class's average precision over samples, for scores and labels (0 or 1) `[N, classes]`; None without any."""
    order = scores.argsort(dim=0, descending=True, stable=True)
    ranked = labels.gather(0, order).T.bool().numpy()
    precisions, present = average_precision(ranked).tolist(), labels.any(dim=0).tolist()
    return [precision if any_sample else None for precision, any_sample in zip(precisions, present, strict=True)]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
