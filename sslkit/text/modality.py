"""What the machinery asks of text."""

from typing import ClassVar

import torch
from torch import Tensor

from sslkit.contract.modality import Modality
from sslkit.data.index import Index
from sslkit.text.classifiers import bag_of_words, majority
from sslkit.text.options import TextOptions
from sslkit.text.source import TextSource


class TextModality(Modality):
    """Passages of words, int64 `[B, context]`."""

    options: ClassVar = TextOptions
    source: ClassVar = TextSource

    def reference_scores(self, train: Index, tests: list[Index], seed: int) -> list[tuple[str, list[Tensor]]]:
        """Return logistic regression on TF-IDF, and the most frequent class."""
        return [
            ("TF-IDF, logistic regression", bag_of_words(train, tests, seed)),
            ("most frequent class", majority(train, tests, seed)),
        ]

    def example_inputs(self, count: int, channels: int, size: int) -> tuple[Tensor, str]:
        """Return random words, int64 `[count, size]`, of `channels` that there are."""
        return torch.randint(channels, (count, size), generator=torch.Generator().manual_seed(0)), "random words"
