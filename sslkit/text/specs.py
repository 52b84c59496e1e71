"""Specs of evaluations of text."""

from pydantic import Field

from sslkit.contract.options import Spec, Texts


class WordsSpec(Spec):
    """Hold what `sslkit words` is told."""

    ckpt: str = Field(description="model.safetensors of a run of `skipgram`.")
    similarity: Texts = Field(default=[], description="File of pairs: two words and a number a line. May be repeated.")
    analogies: Texts = Field(default=[], description="File of questions: four words a line, `: section`. May be repeated.")
