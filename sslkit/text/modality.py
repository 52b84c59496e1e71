"""What the machinery asks of text."""

from collections.abc import Mapping
from textwrap import wrap
from typing import Any, ClassVar

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import UnreadableSampleError
from sslkit.contract.modality import InputGuide, Modality
from sslkit.contract.options import DataOptions
from sslkit.contract.source import Source
from sslkit.contract.task import Batch, DataInfo
from sslkit.data.index import Index
from sslkit.text.classifiers import bag_of_words, cosine_of_pairs, has_pairs, majority, ridge_of_words
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.input_guide import input_guide
from sslkit.text.options import TextOptions
from sslkit.text.source import TextSource, read_texts

_SIDE, _FONT = 192, 18  # pixels of a thumbnail, and of its letters
_COLUMNS, _LINES = 20, 8  # letters in a line, and lines, that have room


class WholeTexts:
    """Hand texts over as they are."""

    def __call__(self, batch: Batch, target: Tensor) -> tuple[Batch, Tensor]:
        """Return `text`, int64 `[B, T]`, and the targets."""
        return {"text": batch["tokens"]}, target


class TextModality(Modality):
    """Passages of words, int64 `[B, context]`."""

    options: ClassVar = TextOptions
    source: ClassVar = TextSource

    def thumbnail(self, source: Source, row: int) -> Image.Image | None:
        """Return a picture of the first words of a text; of a pair, of both."""
        assert isinstance(source, TextSource)
        try:
            texts = read_texts(source.index, row)
        except UnreadableSampleError:
            return None
        picture = Image.new("RGB", (_SIDE, _SIDE), "white")
        pen, font = ImageDraw.Draw(picture), ImageFont.load_default(_FONT)
        for number, text in enumerate(texts):
            lines = wrap(text[: _COLUMNS * _LINES], _COLUMNS)[: _LINES // len(texts)]
            pen.multiline_text((2, number * _SIDE // len(texts)), "\n".join(lines), fill="black", font=font, spacing=_FONT // 4)
        return picture

    def reference_scores(self, train: Index, tests: list[Index], seed: int) -> list[tuple[str, list[Tensor]]]:
        """Return logistic regression on TF-IDF, of pairs also on the second text alone, and the most frequent class."""
        scores = [("TF-IDF, logistic regression", bag_of_words(train, tests, seed))]
        if has_pairs(train):
            scores.append(("TF-IDF of the second text alone", bag_of_words(train, tests, seed, which="second")))
        return [*scores, ("most frequent class", majority(train, tests, seed))]

    def reference_values(self, train: Index, values: Tensor, tests: list[Index], seed: int) -> list[tuple[str, list[Tensor]]]:
        """Return ridge regression on TF-IDF; of pairs also on the second text alone, and the cosine of both."""
        predicted = [("TF-IDF, ridge regression", ridge_of_words(train, values, tests))]
        if has_pairs(train):
            predicted.append(("TF-IDF of the second text alone", ridge_of_words(train, values, tests, which="second")))
            predicted.append(("cosine of TF-IDF", cosine_of_pairs(train, tests)))
        return predicted

    def augmentation(self, options: Any, info: DataInfo, classes: int) -> WholeTexts:
        """Return what hands texts over as they are; raises SslkitError for options that change images."""
        self.refuse_image_augmentation(options)
        return WholeTexts()

    def input_guide(
        self, encoder: Encoder, size: int, options: DataOptions, sample_details: Mapping[str, Any]
    ) -> InputGuide | None:
        """Return how a text becomes token ids; None for an encoder that keeps no tokenizer."""
        return input_guide(encoder, size) if isinstance(encoder, TokenEncoder) else None

    def example_inputs(self, count: int, channels: int, size: int) -> tuple[Tensor, str]:
        """Return random words, int64 `[count, size]`, of `channels` that there are."""
        return torch.randint(channels, (count, size), generator=torch.Generator().manual_seed(0)), "random words"
