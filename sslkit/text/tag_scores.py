"""Scores of predicted labels of words, and the labels that need no encoder."""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from sslkit.contract.result import Metric
from sslkit.evaluation.positions import ratio_metric, recall_by_label
from sslkit.evaluation.statistics import Totals
from sslkit.text.labeled_words import LabeledWords, find_entities

SENTENCES = "sentences"  # the unit of the bootstrap: words of one depend on each other


@dataclass(frozen=True)
class Score:
    """What predictions reach on one test part: metrics, values by label or type, and the headline by sentence."""

    metrics: list[Metric]
    by_class: dict[str, float | None]
    totals: Totals


def score_words(test: LabeledWords, predicted: list[list[str]], training_words: set[str]) -> Score:
    """Return accuracies over all words, and over those not among the `training_words` (in lower case); recall by label."""
    correct, sizes, unseen = [], [], []
    for (words, labels), answers in zip(test.sentences, predicted, strict=True):
        right = [label == answer for label, answer in zip(labels, answers, strict=True)]
        correct.append(sum(right))
        sizes.append(len(words))
        unseen += [is_right for word, is_right in zip(words, right, strict=True) if word.lower() not in training_words]
    totals = Totals(np.array(correct, dtype=np.float64), np.array(sizes, dtype=np.float64))
    metrics = [ratio_metric("accuracy", totals, test.words, "words", SENTENCES)]
    if unseen:
        metrics.append(Metric("unseen words", sum(unseen) / len(unseen), n=len(unseen), unit_of_n="words"))
    labels = [label for _, labels in test.sentences for label in labels]
    return Score(metrics, recall_by_label(labels, [answer for answers in predicted for answer in answers]), totals)


def score_entities(test: LabeledWords, predicted: list[list[str]]) -> Score:
    """Return F1, precision and recall of entities, right if type and words are; F1 by type."""
    hits, actual, answered = Counter[str](), Counter[str](), Counter[str]()
    doubled, sizes = [], []
    for (_, labels), answers in zip(test.sentences, predicted, strict=True):
        truth, guess = set(find_entities(labels)), set(find_entities(answers))
        doubled.append(2 * len(truth & guess))
        sizes.append(len(truth) + len(guess))
        hits.update(kind for kind, _, _ in truth & guess)
        actual.update(kind for kind, _, _ in truth)
        answered.update(kind for kind, _, _ in guess)
    totals = Totals(np.array(doubled, dtype=np.float64), np.array(sizes, dtype=np.float64))
    metrics = [ratio_metric("entity F1", totals, actual.total(), "entities", SENTENCES)]
    for name, whole in (("precision", answered.total()), ("recall", actual.total())):
        metrics.append(Metric(name, hits.total() / max(1, whole), n=whole, unit_of_n="entities"))
    by_type = {kind: 2 * hits[kind] / (actual[kind] + answered[kind]) for kind in sorted(actual)}
    return Score(metrics, dict(by_type), totals)


def most_frequent(train: LabeledWords, test: LabeledWords) -> list[list[str]]:
    """Return for each word the label that it has most often in training, whatever its case.

    Words that are not there get the label that words have most often which are there once.
    """
    by_word: dict[str, Counter[str]] = {}
    for words, labels in train.sentences:
        for word, label in zip(words, labels, strict=True):
            by_word.setdefault(word.lower(), Counter())[label] += 1
    once = Counter(label for counts in by_word.values() if counts.total() == 1 for label in counts)
    everything = Counter(label for _, labels in train.sentences for label in labels)
    unseen = (once or everything).most_common(1)[0][0]
    best = {word: counts.most_common(1)[0][0] for word, counts in by_word.items()}
    return [[best.get(word.lower(), unseen) for word in words] for words, _ in test.sentences]
