"""Rows of classifiers that need no encoder, such as logistic regression on TF-IDF, beside those of encoders."""

import numpy as np
import torch

from sslkit.contract.result import Fit, Row
from sslkit.evaluation.metrics import mean_correct, score
from sslkit.evaluation.splits import Parts
from sslkit.evaluation.statistics import Answers, compare_answers
from sslkit.registry import load_modality


def reference_rows(modality: str, parts: Parts, seed: int, against: tuple[str, list[Answers]]) -> list[Row]:
    """Return a row for each such classifier of a modality and each test part.

    They are compared with the row `against`, of which the answers on each test part are given.
    """
    name, answers = against
    rows = []
    tests = [part.index for part in parts.tests]
    for model, scores in load_modality(modality).reference_scores(parts.train, tests, seed):
        for part, values, other in zip(parts.tests, scores, answers, strict=True):
            labels = torch.from_numpy(part.index.labels)
            metrics, by_class = score([values], labels, parts.classes)
            answered = Answers(np.arange(len(labels)), mean_correct([values], labels))
            fits = [Fit(seed, len(parts.train))]
            comparisons = {name: compare_answers(answered, other)}
            rows.append(Row(model, metrics, part.name, by_class=by_class, comparisons=comparisons, fits=fits, role="other"))
    return rows
