"""Accuracies and average precisions of class scores."""

import numpy as np
import torch
from torch import Tensor

from sslkit.contract.result import Metric
from sslkit.evaluation.statistics import interval_of_mean

TOP1 = "top-1"
MCC = "MCC"  # the correlation of two classes

ByClass = dict[str, float | None]  # recall, or average precision; None: no sample of the class in the test part


def classification(scores: Tensor, labels: Tensor, classes: tuple[str, ...]) -> tuple[dict[str, float], ByClass]:
    """Return metrics by name, and by class, of class scores `[N, classes]` for labels `[N]`, or `[N, classes]` of 0 and 1.

    All but MCC are shares of 1; means over classes are over those in the test part. Top-5 needs more than five classes and
    counts a tie against the model, so that classes without any vote win nothing. Of two classes also their correlation. With
    several labels per sample, top-1 is how often the likeliest class is one of them, mAP is the mean over classes, and the
    average precisions are those by class.
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
    if count == 2:
        metrics[MCC] = matthews_correlation(hits, actual, predictions)
    return metrics, {name: recall[i].item() if present[i] else None for i, name in enumerate(classes)}


def matthews_correlation(hits: Tensor, actual: Tensor, predictions: Tensor) -> float:
    """Return the correlation of predicted and actual classes from their counts by class; 0 where all are predicted alike.

    Of two classes it is Matthews's (1975), of more that of Gorodkin (2004).
    """
    total = actual.sum()
    covariance = hits.sum() * total - (actual * predictions).sum()
    scale = ((total**2 - predictions.square().sum()) * (total**2 - actual.square().sum())).sqrt()
    return float(covariance / scale) if scale > 0 else 0.0


def score(scores: list[Tensor], labels: Tensor, classes: tuple[str, ...]) -> tuple[list[Metric], ByClass]:
    """Return the metrics, top-1 first, and values by class, of class scores `[M, classes]`, one tensor for each seed.

    They are means over seeds; top-1 has an interval over samples and, with several seeds, the deviation between them.
    """
    by_seed = [classification(seed_scores, labels, classes) for seed_scores in scores]
    correct = mean_correct(scores, labels)
    low, high, method = interval_of_mean(correct)
    deviation = float(np.std([metrics[TOP1] for metrics, _ in by_seed], ddof=1)) if len(scores) > 1 else None
    metrics = []
    for name in by_seed[0][0]:
        value = float(np.mean([metrics[name] for metrics, _ in by_seed]))
        metric = Metric(name, value, seeds=len(scores), n=len(labels), unit="correlation" if name == MCC else "share")
        if name == TOP1:
            metric = Metric(name, value, low, high, method, deviation, len(scores), len(labels))
        metrics.append(metric)
    return metrics, {name: _mean([by_class[name] for _, by_class in by_seed]) for name in classes}


def is_correct(scores: Tensor, labels: Tensor) -> Tensor:
    """Return 1 for each sample `[N]` whose largest score is (one of) its label(s), else 0; the first class wins a tie."""
    predicted = scores.argmax(dim=1)
    return (predicted == labels if labels.dim() == 1 else labels.gather(1, predicted[:, None])[:, 0]).double()


def mean_correct(scores: list[Tensor], labels: Tensor) -> Tensor:
    """Return the mean of `is_correct` over the class scores of several seeds, float64 `[N]`."""
    return torch.stack([is_correct(seed_scores, labels) for seed_scores in scores]).mean(dim=0)


def average_precision(scores: Tensor, relevant: Tensor) -> Tensor:
    """Return the average precision `[M]`, float64 on the CPU, of ranking items by scores `[M, N]`; 0 if none is relevant.

    `relevant` are the places of relevant items, int64 `[R]`. As scikit-learn's, it is the mean over relevant items of the
    precision among all items that score at least as high: items of equal score share a rank, whatever their order.
    Ranks are counted: only relevant items are sorted.
    """
    rankings, count = len(scores), len(relevant)
    if not count:
        return torch.zeros(rankings, dtype=torch.float64)
    ascending = scores[:, relevant].sort(dim=1).values
    # For each item, how many relevant ones it reaches; then, for each relevant one, how many items reach it.
    reached = torch.searchsorted(ascending, scores.contiguous(), right=True)
    reached += torch.arange(rankings, device=scores.device)[:, None] * (count + 1)
    histogram = torch.bincount(reached.flatten(), minlength=rankings * (count + 1)).view(rankings, count + 1)
    items = histogram.flip(1).cumsum(dim=1).flip(1)[:, 1:].cpu()
    relevant_items = count - torch.searchsorted(ascending, ascending).cpu()
    return (relevant_items.double() / items).mean(dim=1)


def precision_at(scores: Tensor, relevant: Tensor, k: int) -> Tensor:
    """Return the precision `[M]`, float64 on the CPU, among the k items with the largest scores `[M, N]`.

    `relevant` are the places of relevant items, int64 `[R]`. Of items that tie for the last places, it is the expectation
    over their order. Of fewer than k items, all count.
    """
    k = min(k, scores.shape[1])
    last = scores.topk(k, dim=1).values[:, -1:]
    relevant_scores = scores[:, relevant]
    above, tied = (scores > last).sum(dim=1), (scores == last).sum(dim=1)
    relevant_above, relevant_tied = (relevant_scores > last).sum(dim=1), (relevant_scores == last).sum(dim=1)
    above, tied, relevant_above, relevant_tied = (
        count.cpu().double() for count in (above, tied, relevant_above, relevant_tied)
    )
    return (relevant_above + (k - above) * relevant_tied / tied) / k


def precision_by_class(scores: Tensor, labels: Tensor) -> list[float | None]:
    """Return each class's average precision over samples, for scores and labels (0 or 1) `[N, classes]`; None without any."""
    members = [labels[:, number].nonzero()[:, 0] for number in range(labels.shape[1])]
    return [
        average_precision(scores[None, :, number], rows).item() if len(rows) else None for number, rows in enumerate(members)
    ]


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
