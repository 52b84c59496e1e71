"""Classifiers of texts that need no encoder: what features have to beat."""

import numpy as np
import torch
from torch import Tensor

from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.index import Index
from sslkit.text.source import read_texts

_LARGEST = 2**18  # words and pairs of words, the most frequent


def bag_of_words(train: Index, tests: list[Index], seed: int, second_only: bool = False) -> list[Tensor]:
    """Return scores of logistic regression on TF-IDF of words and pairs of words, whose counts enter by their logarithm.

    With `second_only`, of the second text of pairs alone: what that reaches says nothing about the pair (Poliak et al., 2018).
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_LARGEST, token_pattern=r"\S+")
    model = make_pipeline(words, LogisticRegression(C=10.0, max_iter=1000, random_state=seed))
    model.fit(_documents(train, second_only), train.labels)
    scores = [model.predict_proba(_documents(test, second_only)) for test in tests]
    return [_spread(values, model.classes_, len(train.classes)) for values in scores]


def has_pairs(index: Index) -> bool:
    """Return whether the samples of an index are pairs of texts, by the first that can be read."""
    for row in range(len(index)):
        try:
            return len(read_texts(index, row)) == 2
        except UnreadableSampleError:  # reported where features are taken
            continue
    return False


def majority(train: Index, tests: list[Index], seed: int) -> list[Tensor]:
    """Return scores that are always the frequencies of the classes."""
    assert train.labels is not None
    shares = torch.from_numpy(np.bincount(train.labels, minlength=len(train.classes)) / len(train.labels))
    return [shares.expand(len(test), -1) for test in tests]


def _spread(scores: np.ndarray, classes: np.ndarray, count: int) -> Tensor:
    """Return scores `[N, count]` of which some classes were not in training."""
    whole = torch.zeros(len(scores), count, dtype=torch.float64)
    whole[:, torch.from_numpy(classes)] = torch.from_numpy(scores)
    return whole


def _documents(index: Index, second_only: bool) -> list[str]:
    """Return the texts of an index, a pair as one or its second text; nothing of those that cannot be read."""
    documents = []
    for row in range(len(index)):
        try:
            texts = read_texts(index, row)
            documents.append(texts[-1] if second_only else " ".join(texts))
        except UnreadableSampleError:  # reported where features are taken
            documents.append("")
    return documents
