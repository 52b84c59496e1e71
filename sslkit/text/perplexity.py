"""`sslkit perplexity`: how well a language model predicts text that it has not seen."""

import math
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from sslkit.console import say_once, show_progress
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Metric, Result, Role, Row, TestData
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import CHECKPOINT, RANDOM, weights_hash
from sslkit.evaluation.notes import count
from sslkit.evaluation.splits import named_data
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, interval_of_ratio
from sslkit.text.baselines import COMPRESSORS, TokenCounts, compressed_bits
from sslkit.text.corpus import Corpus, Part, text_files
from sslkit.text.language_model import LanguageModel, randomize, read_language_model
from sslkit.text.options import TEXTS, TextOptions
from sslkit.text.passages import encode_pieces, open_corpus
from sslkit.text.specs import PerplexitySpec
from sslkit.text.tokenizer import END, UNKNOWN, Ids, Tokenizer

_TOKENS = 2**13  # in a batch
_BLOCK = 256  # tokens whose mean is one sample of the bootstrap: neighbors depend on each other


@dataclass(frozen=True)
class TestText:
    """A text to test on, as it is and as token ids `[N]`; `counted` tells which of these stand for text."""

    __test__ = False  # not a test class of pytest's

    name: str
    content: bytes
    tokens: Ids
    counted: NDArray[np.bool_]
    known: float  # share of the tokens that are no unknown words

    @property
    def previous(self) -> Ids:
        """Return the token before each; before the first one, the end of a document."""
        return np.concatenate([self.tokens[-1:], self.tokens[:-1]])


class Perplexity(Evaluation):
    """Measure how well a language model predicts text, in bits per byte and perplexity."""

    verb = "perplexity"
    Options = PerplexitySpec
    labels = "none"
    requires = ("causal",)
    modalities = ("text",)
    protocols = (
        Protocol(
            "perplexity/half-window-v1",
            "every token predicted once, from half a window of text at least",
            {"stride": "half of a window"},
            deterministic=True,
        ),
    )

    def run(self, spec: PerplexitySpec) -> Result:
        """Measure a checkpoint, the same network with random weights, counts, and programs that compress.

        Bits per byte can be compared between units of text, perplexity cannot. Raises SslkitError for a checkpoint that
        predicts no next tokens, and where there is nothing to test on.
        """
        started_at = time.monotonic()
        spec.check_modality("text")
        device, _ = choose_device(spec.device)
        model = read_language_model(spec.ckpt, spec.part, "next").to(device)
        checkpoint, tokenizer = model.checkpoint, model.tokenizer
        corpus, texts = _open(spec, checkpoint, tokenizer)
        stride = checkpoint.size // 2 if spec.stride == "auto" else min(spec.stride, checkpoint.size)
        weights = weights_hash(model.encoder)
        random = randomize(model, spec.seed) if spec.baselines else None
        counts: TokenCounts | None = None
        history: bytes | None = None
        if spec.baselines and corpus is not None:
            counts = TokenCounts.of(encode_pieces(corpus.pieces("train"), tokenizer), tokenizer.size)
            history = corpus.content("train") if tokenizer.lossless else None
        rows: list[Row] = []
        for text in texts:
            measured = [_Measured(CHECKPOINT, "checkpoint", token_losses(model, text, checkpoint.size, stride))]
            if random is not None:
                measured.append(_Measured(RANDOM, "random", token_losses(random, text, checkpoint.size, stride)))
            if counts is not None:
                measured.append(_Measured("token counts", "other", counts.unigram(text.tokens)))
                measured.append(_Measured("pair counts", "baseline", counts.bigram(text.previous, text.tokens)))
            rows += _rows(text, measured, tokenizer, weights)
            if history is not None:
                rows += _compressed(text, history)
        rows = adjust_comparisons(rows)
        tests = [TestData(text.name, blake2b(text.content, digest_size=8).hexdigest(), len(text.content)) for text in texts]
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id if spec.stride == "auto" else None,
            settings={"unit": tokenizer.unit, "size": checkpoint.size, "stride": stride, "seed": spec.seed},
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=Data(tests=tests),
            rows=rows,
            notes=[_describe(text, tokenizer) for text in texts],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def perplexity(spec: PerplexitySpec) -> Result:
    """Measure how well a language model predicts text, as `sslkit perplexity` does."""
    return Perplexity().run(spec)


@dataclass(frozen=True)
class _Measured:
    """What one model reaches: -log p of each token of a test text, in nats `[N]`."""

    name: str
    role: Role
    nats: NDArray[np.float64]


def _open(spec: PerplexitySpec, checkpoint: Checkpoint, tokenizer: Tokenizer) -> tuple[Corpus | None, list[TestText]]:
    """Return the training text, None if it is not there, and the texts to test on."""
    if spec.test and spec.data is None:
        try:
            data, _, spec = named_data(spec, checkpoint)
            corpus = open_corpus(data, spec.table(TextOptions)) if Path(data).exists() else None
        except SslkitError:  # a checkpoint that lies alone can be tested all the same
            corpus = None
    else:
        data, _, spec = named_data(spec, checkpoint)
        corpus = open_corpus(data, spec.table(TextOptions))
    options = spec.table(TextOptions)
    if spec.test:
        with renamed_flags({"data": "test"}):
            tests = [Corpus.open(text_files(Path(test)), options.documents, 0.0) for test in spec.test]
            return corpus, [_read(name, test, "train", tokenizer) for name, test in zip(spec.test, tests, strict=True)]
    assert corpus is not None
    parts = find_parts(data, TEXTS)
    if len(parts) > 1:
        name, location = list(parts.items())[1]
        test = Corpus.open(text_files(Path(location)), options.documents, 0.0)
        return corpus, [_read(f"{name} of {data}", test, "train", tokenizer)]
    if corpus.cut == corpus.size:
        raise SslkitError("nothing is held out of the data", "name a text to test on", flag="test")
    share = (corpus.size - corpus.cut) / corpus.size
    return corpus, [_read(f"the last {share:.1%} of {data}", corpus, "held-out", tokenizer)]


def _read(name: str, corpus: Corpus, part: Part, tokenizer: Tokenizer) -> TestText:
    """Return a part of a corpus as a test text."""
    say_once(f"test part: {name}")
    content = corpus.content(part)
    tokens = np.concatenate([np.zeros(0, dtype=np.int32), *encode_pieces(corpus.pieces(part), tokenizer)])
    counted = tokens != tokenizer.special(END)
    if not counted.any():
        raise SslkitError(f"{name} has no text", flag="test")
    known = float((tokens[counted] != tokenizer.special(UNKNOWN)).mean())
    return TestText(name, content, tokens, counted, known)


@torch.no_grad()
def token_losses(model: LanguageModel, text: TestText, size: int, stride: int) -> NDArray[np.float64]:
    """Return -log p of each token in nats `[N]`, each counted once, in windows of `size` that move on by `stride`.

    In each window but the first only its last tokens count, so that these are predicted from `size - stride` others at least.
    """
    device = model.encoder.device
    inputs, targets = (torch.from_numpy(array.astype(np.int64)) for array in (text.previous, text.tokens))
    length = len(targets)
    size = min(size, length)
    starts = [*range(0, max(1, length - size), stride), length - size]
    batch = max(1, _TOKENS // size)
    nats = torch.zeros(length, dtype=torch.float64)
    with show_progress("predicting tokens", length) as progress:
        done = 0
        for first in range(0, len(starts), batch):
            places = torch.tensor(starts[first : first + batch])[:, None] + torch.arange(size)
            logits = model.logits(model.encoder.next_states(inputs[places].to(device)))
            losses = F.cross_entropy(logits.transpose(1, 2), targets[places].to(device), reduction="none").double().cpu()
            for start, row in zip(starts[first : first + batch], losses, strict=True):
                stop = start + size
                if stop > done:
                    nats[done:stop] = row[done - start :]
                    progress.advance(stop - done)
                    done = stop
    return nats.numpy()


def _rows(text: TestText, measured: list[_Measured], tokenizer: Tokenizer, weights: str) -> list[Row]:
    """Return the rows of models that predict the same tokens, compared with the first by blocks of the text."""
    blocks = [block for block in np.array_split(np.flatnonzero(text.counted), max(2, len(text.tokens) // _BLOCK)) if len(block)]
    lengths = tokenizer.byte_lengths() if tokenizer.lossless else np.ones(tokenizer.size)
    sizes = np.array([lengths[text.tokens[block]].sum() for block in blocks], dtype=np.float64)
    words = len(text.content.split())
    rows: list[Row] = []
    first: NDArray[np.float64] | None = None
    for model in measured:
        sums = np.array([model.nats[block].sum() for block in blocks])
        shares = sums / sizes.mean() / (math.log(2) if tokenizer.lossless else 1)  # whose mean is the headline
        total, tokens = float(sums.sum()), int(text.counted.sum())
        metrics = [] if not tokenizer.lossless else [_bits_per_byte(sums, sizes, len(text.content))]
        metrics += [
            _plain("perplexity per token", math.exp(total / tokens), tokens, "tokens"),
            _plain("perplexity per word", math.exp(min(700.0, total / max(1, words))), words, "words"),
        ]
        comparisons = {}
        if first is None:
            first = shares
        else:
            rows_of_blocks = np.arange(len(blocks))
            comparisons[CHECKPOINT] = compare_answers(
                Answers(rows_of_blocks, torch.from_numpy(shares)), Answers(rows_of_blocks, torch.from_numpy(first))
            )
        rows.append(Row(model.name, metrics, test=text.name, comparisons=comparisons, weights=weights, role=model.role))
    return rows


def _bits_per_byte(nats: NDArray[np.float64], sizes: NDArray[np.float64], count: int) -> Metric:
    value = nats.sum() / math.log(2) / count
    low, high, method = interval_of_ratio(nats / math.log(2), sizes, unit="blocks of text")
    return Metric(
        "bits per byte", float(value), low, high, method, n=count, unit_of_n="bytes", higher_is_better=False, unit="other"
    )


def _plain(name: str, value: float, n: int, unit: str) -> Metric:
    return Metric(name, value, n=n, unit_of_n=unit, higher_is_better=False, unit="other")


def _compressed(text: TestText, history: bytes) -> list[Row]:
    """Return rows of programs that compress: by how much a compressed training text grows if the test text follows."""
    rows = []
    for name in COMPRESSORS:
        bits = compressed_bits(name, history, text.content) / len(text.content)
        metric = Metric("bits per byte", bits, n=len(text.content), unit_of_n="bytes", higher_is_better=False, unit="other")
        rows.append(Row(name, [metric], test=text.name, role="other"))
    return rows


def _describe(text: TestText, tokenizer: Tokenizer) -> str:
    """Return what was predicted, and how much of the text its tokens stand for."""
    parts = [f"{text.name}: {len(text.content):,} bytes, {count(len(text.content.split()), 'word')}"]
    parts.append(f"{count(int(text.counted.sum()), 'token')} ({tokenizer.unit})")
    if not tokenizer.lossless:
        parts.append(f"{text.known:.1%} of them known; case and spaces are lost, so that bits per byte are not defined")
    return f"{', '.join(parts)}."
