"""Specs of evaluations of text."""

from typing import Annotated

from pydantic import Field

from sslkit.contract.options import Auto, Count, Spec, Texts
from sslkit.specs.data import DEVICE, PART, DataSpec
from sslkit.specs.evaluation import EvaluationSpec

Stride = Annotated[int, Field(ge=1)]


class WordVectorSpec(Spec):
    """Options of `word-vectors`."""

    ckpt: str = Field(description="model.safetensors of a run of `skipgram`.")
    part: str = PART
    similarity: Texts = Field(default=[], description="File of word pairs: two words and a rating per line. May be repeated.")
    analogies: Texts = Field(default=[], description="File of analogies: four words per line, `: section`. May be repeated.")
    translate_to: str | None = Field(
        default=None, description="Word vectors of another language, a model.safetensors, that these are mapped onto."
    )
    dictionary: str | None = Field(
        default=None,
        description="File of a word and its translation per line, to fit the map on; default: words spelled alike in both.",
    )
    test_dictionary: str | None = Field(
        default=None, description="Such a file to test on; default: a fifth of the words of --dictionary, drawn by --seed."
    )
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed.")
    details: bool = Field(default=False, description="Also print p-values.")


class TagSpec(EvaluationSpec):
    """Options of `tag`."""

    layer: str = Field(
        default="last",
        pattern=r"^(last|all|mix|[1-9]\d*)$",
        description="last, all (a row each), mix (a weighted sum of all, learned with the classifier), or a number counted "
        "from the input.",
    )
    test: Texts = Field(default=[], description="File of labeled words to test on; default: test.conllu or .conll of --data.")
    words: Count = Field(default=200_000, description="Words to fit on at most, drawn by the seed as whole sentences.")
    c: float | None = Field(
        default=None, gt=0, description="Inverse regularization C; set by hand, the result has no protocol id."
    )
    finetune: bool = Field(
        default=False, description="Train the encoder too, from the checkpoint and from random weights; it is not kept."
    )
    epochs: Count = Field(default=5, description="Passes over the sentences with --finetune.")
    lr: float = Field(default=5e-4, gt=0, description="Peak learning rate with --finetune.")


class PerplexitySpec(DataSpec):
    """Options of `perplexity`."""

    ckpt: str = Field(description="model.safetensors of a run of `gpt` or another language model.")
    part: str = PART
    test: Texts = Field(
        default=[], description="Text to test on; default: what is held out of --data, or its test part. May be repeated."
    )
    stride: Stride | Auto = Field(
        default="auto",
        description="Tokens by which the window moves on, of which only these are counted; auto: half of a window.",
    )
    against: Texts = Field(
        default=[], description="Other language model to compare with, a model.safetensors. May be repeated."
    )
    baselines: bool = Field(
        default=True, description="Also measure random weights, counts of tokens and pairs, and compression programs."
    )
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class PseudoPerplexitySpec(DataSpec):
    """Options of `pseudo-perplexity`."""

    ckpt: str = Field(description="model.safetensors of a run of `bert`.")
    part: str = PART
    test: Texts = Field(
        default=[], description="Text to test on; default: what is held out of --data, or its test part. May be repeated."
    )
    passages: Count = Field(
        default=64, description="Passages at most, spread evenly over the text; each takes as many forward passes as tokens."
    )
    baselines: bool = Field(default=True, description="Also measure random weights, and the frequencies of tokens.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class GenerateSpec(DataSpec):
    """Settings of `sslkit generate`."""

    ckpt: str = Field(description="model.safetensors of a run of `gpt` or another language model.")
    part: str = PART
    prompt: str = Field(default="", description="Text to go on from; default: the start of a document.")
    count: Count = Field(default=1, description="Number of texts.")
    length: Count = Field(default=200, description="Tokens of a text at most; it ends earlier where a document does.")
    temperature: float = Field(
        default=1.0, ge=0, description="Divides the scores: below 1 likelier tokens gain; 0: always the likeliest."
    )
    top_k: int | None = Field(default=None, ge=1, description="Choose among this many likeliest tokens; default: all.")
    top_p: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="Choose among the likeliest tokens that have this probability together (0.9 is usual).",
    )


class PromptSpec(DataSpec):
    """Options of `prompt`."""

    ckpt: str = Field(description="model.safetensors of a run of `bert`, `gpt` or another language model.")
    part: str = PART
    pattern: Texts = Field(
        default=["{} it was [MASK] ."],
        min_length=1,
        description="Sentence with {} for the text and [MASK] for the answer; probabilities are averaged over several.",
    )
    verbalizer: dict[str, str] = Field(
        default={}, description="CLASS=WORD, the word that represents a class; default: the class names. May be repeated."
    )
    shots: int = Field(default=0, ge=0, le=100, description="Labeled examples of each class placed before the text.")
    calibrate: bool = Field(default=True, description="Divide probabilities by those for the text N/A (Zhao et al., 2021).")
    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated: a row each.")
    baselines: bool = Field(default=True, description="Also evaluate random weights, TF-IDF and the most frequent class.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class ClozeSpec(Spec):
    """Options of `cloze`."""

    ckpt: str = Field(description="model.safetensors of a run of `bert`.")
    part: str = PART
    test: Texts = Field(default=[], description="File with a sentence, a tab and the word for its [MASK] in each line.")
    candidates: Texts = Field(default=[], description="Only this answer, one piece of the tokenizer; may be repeated.")
    baselines: bool = Field(default=True, description="Also evaluate random weights.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed.")
    device: str = DEVICE
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class FillMaskSpec(Spec):
    """Settings of `sslkit fill-mask`."""

    ckpt: str = Field(description="model.safetensors of a run of `bert`.")
    part: str = PART
    text: str = Field(default="", description="Text with one [MASK].")
    top: Count = Field(default=10, description="Number of answers.")
    candidates: Texts = Field(default=[], description="Only this answer, one piece of the tokenizer; may be repeated.")
    device: str = DEVICE
