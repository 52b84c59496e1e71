"""Texts that language models are tested on: what is held out of the training text, a test part, or other files."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint
from sslkit.evaluation.notes import count
from sslkit.text.corpus import Corpus, Part, text_files
from sslkit.text.options import TEXTS, TextOptions
from sslkit.text.passages import encode_pieces
from sslkit.text.specs import PerplexitySpec, PseudoPerplexitySpec
from sslkit.text.tokenizer import END, UNKNOWN, Ids, Tokenizer
from sslkit.text.training_text import find_training_text, open_training_text

S = TypeVar("S", PerplexitySpec, PseudoPerplexitySpec)


@dataclass(frozen=True)
class TestPart:
    """A text to test on: a part of some documents."""

    __test__ = False  # not a test class of pytest's

    name: str
    corpus: Corpus
    part: Part

    @cached_property
    def content(self) -> bytes:
        """Return the text as it is."""
        return self.corpus.content(self.part)

    def encode(self, tokenizer: Tokenizer) -> "TestText":
        """Return the text as token ids; raises SslkitError if there are none."""
        tokens = np.concatenate([np.zeros(0, dtype=np.int32), *encode_pieces(self.corpus.pieces(self.part), tokenizer)])
        text = TestText(tokens, tokens != tokenizer.special(END))
        if not text.counted.any():
            raise SslkitError(f"{self.name} has no text", flag="test")
        return text


@dataclass(frozen=True)
class TestText:
    """A text as token ids `[N]`; `counted` tells which of these stand for text."""

    __test__ = False  # not a test class of pytest's

    tokens: Ids
    counted: NDArray[np.bool_]

    @property
    def previous(self) -> Ids:
        """Return the token before each; before the first one, the end of a document."""
        return np.concatenate([self.tokens[-1:], self.tokens[:-1]])


def open_tests(spec: S, checkpoint: Checkpoint) -> tuple[Corpus | None, list[TestPart], S]:
    """Return the training text, None if it is not there, and the texts to test on; and the spec with their options.

    Raises SslkitError for a text that cannot be read, or has changed since the run, and where nothing is held out.
    """
    if spec.test:
        corpus, spec = find_training_text(spec, checkpoint)
        with renamed_flags({"data": "test"}):
            documents = spec.table(TextOptions).documents
            tests = [TestPart(name, Corpus.open(text_files(Path(name)), documents, 0.0), "train") for name in spec.test]
        return corpus, tests, spec
    corpus, spec = open_training_text(spec, checkpoint)
    assert spec.data is not None
    parts = find_parts(spec.data, TEXTS)
    if len(parts) > 1:
        name, location = list(parts.items())[1]
        test = Corpus.open(text_files(Path(location)), spec.table(TextOptions).documents, 0.0)
        return corpus, [TestPart(f"{name} of {spec.data}", test, "train")], spec
    if corpus.cut == corpus.size:
        raise SslkitError("nothing is held out of the data", "name a text to test on", flag="test")
    share = (corpus.size - corpus.cut) / corpus.size
    return corpus, [TestPart(f"the last {share:.1%} of {spec.data}", corpus, "held-out")], spec


def describe_text(test: TestPart, text: TestText, tokenizer: Tokenizer) -> str:
    """Return what was predicted, and how much of the text its tokens stand for."""
    parts = [f"{test.name}: {len(test.content):,} bytes, {count(len(test.content.split()), 'word')}"]
    parts.append(f"{count(int(text.counted.sum()), 'token')} ({tokenizer.unit})")
    if not tokenizer.lossless:
        known = float((text.tokens[text.counted] != tokenizer.special(UNKNOWN)).mean())
        parts.append(f"{known:.1%} of them known; case and spaces are lost, so that bits per byte are not defined")
    return f"{', '.join(parts)}."
