"""Specs of evaluations of text."""

from pydantic import Field

from sslkit.contract.options import Spec, Texts
from sslkit.specs.data import PART


class WordVectorSpec(Spec):
    """Options of `word-vectors`."""

    ckpt: str = Field(description="model.safetensors of a run of `skipgram`.")
    part: str = PART
    similarity: Texts = Field(default=[], description="File of word pairs: two words and a rating per line. May be repeated.")
    analogies: Texts = Field(default=[], description="File of analogies: four words per line, `: section`. May be repeated.")
    details: bool = Field(default=False, description="Also print p-values.")
