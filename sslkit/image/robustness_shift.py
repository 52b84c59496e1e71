"""Accuracy on other test sets of the same classes: one protocol of `sslkit robustness`."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.result import Metric, Row
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.effective_robustness import ShiftAnswers
from sslkit.evaluation.session import EvaluationSession, SplitFeatures
from sslkit.evaluation.splits import TestPart, find_labeled
from sslkit.evaluation.statistics import Answers, compare_answers, interval_of_mean
from sslkit.image.frozen_classifiers import Classifier, Table, fit_classifiers
from sslkit.image.robustness_corruptions import note_on_line
from sslkit.image.specs import RobustnessSpec


@dataclass(frozen=True)
class Scored:
    """The scores `[N, classes]` of each predictor of a model on a test set."""

    scores: list[Tensor]
    test: SplitFeatures

    @classmethod
    def of(cls, classifier: Classifier, part: TestPart) -> "Scored":
        """Read features of a test set and score them."""
        session = classifier.reader.session
        other = replace(session, parts=replace(session.parts, tests=[part]))
        (test,) = replace(classifier.reader, session=other).tests()
        return cls([predictor.scores(test.layers) for predictor in classifier.predictors], test)

    def correct(self, present: Tensor) -> NDArray[np.float64]:
        """Return whether the best of the classes `present` is right, `[P, n]`, for the samples of these classes."""
        kept = torch.isin(self.test.labels, present)
        labels = self.test.labels[kept]
        predicted = [present[scores[kept][:, present].argmax(dim=1)] for scores in self.scores]
        return torch.stack([classes == labels for classes in predicted]).double().numpy()


def measure_shift(session: EvaluationSession, spec: RobustnessSpec) -> Table:
    """Return a row for each model and shifted test set, with the accuracy on the first test part beside it.

    Where a set has some of the classes only, classifiers choose among these, on the test part as well.
    """
    if len(session.parts.tests) > 1:
        raise SslkitError(f"{len(session.parts.tests)} test parts", "shift-v1 compares with one", flag="test")
    (clean,), every_class = session.parts.tests, torch.arange(len(session.classes))
    with renamed_flags({"test": "shifted"}):
        shifted = find_labeled(spec, spec.shifted, session.checkpoint).tests
    classifiers = fit_classifiers(session, spec)
    table, outcomes = Table(), CheckpointOutcomes[Answers](compare_answers)
    on_clean = [Scored.of(classifier, clean) for classifier in classifiers]
    table.tests.append(classifiers[0].describe(clean, on_clean[0].test.hashes))
    for number, part in enumerate(shifted):
        assert part.index.labels is not None
        present = torch.from_numpy(np.unique(part.index.labels))
        some = len(present) < len(every_class)
        assert clean.index.labels is not None
        if not np.isin(clean.index.labels, part.index.labels).any():
            raise SslkitError(f"{part.name} has none of the classes of {clean.name}", "compare the same ones", flag="shifted")
        scored = [Scored.of(classifier, part) for classifier in classifiers]
        before = [each.correct(present) for each in on_clean]
        after = [each.correct(present) for each in scored]
        robustness = ShiftAnswers(np.concatenate(before), np.concatenate(after), paired=False).metric()
        for place, classifier in enumerate(classifiers):
            shares, rows = after[place][0], scored[place].test.rows
            metrics = [_share("top-1", shares), _share("on the test part", before[place][0])]
            if some:
                metrics.append(_share("among all classes", scored[place].correct(every_class)[0]))
            if classifier.model.role == "checkpoint" and robustness is not None:
                metrics.append(robustness)
            comparisons = outcomes.compare(classifier.model.role, number, None, Answers(rows, torch.from_numpy(shares)))
            row = Row(classifier.model.name, metrics, part.name, layer=spec.layer, comparisons=comparisons)
            table.rows.append(classifier.complete(row))
        table.tests.append(classifiers[0].describe(part, scored[0].test.hashes))
        if some:
            table.notes.append(f"{part.name} has {len(present)} of {len(every_class)} classes: top-1 is among these.")
        if number == len(shifted) - 1:
            table.notes.append(note_on_line(robustness, classifiers))
    return table


def _share(name: str, correct: NDArray[np.float64]) -> Metric:
    low, high, method = interval_of_mean(torch.from_numpy(correct))
    return Metric(name, float(correct.mean()), low, high, method, n=len(correct), unit_of_n="images")
