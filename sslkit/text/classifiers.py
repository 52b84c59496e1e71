"""Predictions about texts that need no encoder: what features have to beat."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sslkit.contract.errors import UnreadableSampleError
from sslkit.data.index import Index
from sslkit.text.source import read_texts

Which = Literal["first", "second", "both"]
_LARGEST = 2**18  # words and pairs of words, the most frequent


def bag_of_words(train: Index, tests: list[Index], seed: int, which: Which = "both") -> list[Tensor]:
    """Return scores of logistic regression on TF-IDF of words and pairs of words, whose counts enter by their logarithm.

    With `which`, of one text of pairs alone: what the second reaches says nothing about the pair (Poliak et al., 2018).
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(_word_counts(), LogisticRegression(C=10.0, max_iter=1000, random_state=seed))
    model.fit(_documents(train, which), train.labels)
    scores = [model.predict_proba(_documents(test, which)) for test in tests]
    return [_spread(values, model.classes_, len(train.classes)) for values in scores]


def ridge_of_words(train: Index, values: Tensor, tests: list[Index], which: Which = "both") -> list[Tensor]:
    """Return numbers `[N]` predicted by ridge regression on the same counts."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(_word_counts(), Ridge(alpha=1.0, solver="lsqr"))
    model.fit(_documents(train, which), values.numpy())
    return [torch.from_numpy(model.predict(_documents(test, which))) for test in tests]


def cosine_of_pairs(train: Index, tests: list[Index]) -> list[Tensor]:
    """Return the cosine of the TF-IDF of both texts of pairs, `[N]`; of `train` only the frequencies of words are used."""
    words = _word_counts().fit(_documents(train))
    cosines = []
    for test in tests:
        firsts = words.transform(_documents(test, "first"))
        seconds = words.transform(_documents(test, "second"))
        cosines.append(torch.from_numpy(np.asarray(firsts.multiply(seconds).sum(axis=1))[:, 0]))  # of unit vectors
    return cosines


def _word_counts() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, max_features=_LARGEST, token_pattern=r"\S+")


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


def _documents(index: Index, which: Which = "both") -> list[str]:
    """Return the texts of an index, of pairs the first, the second or both as one; nothing of those that cannot be read."""
    documents = []
    for row in range(len(index)):
        try:
            texts = read_texts(index, row)
            documents.append({"first": texts[0], "second": texts[-1], "both": " ".join(texts)}[which])
        except UnreadableSampleError:  # reported where features are taken
            documents.append("")
    return documents
