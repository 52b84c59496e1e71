"""`sslkit perplexity`: how well a language model predicts text that it has not seen."""

import math
import time
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from sslkit.console import say_once, show_progress
from sslkit.contract.errors import SslkitError, flag_name, renamed_flags
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Metric, Result, Role, Row, TestData
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import CHECKPOINT, RANDOM, weights_hash
from sslkit.evaluation.statistics import Totals, adjust_comparisons, compare_ratios, interval_of_ratio
from sslkit.specs.data import MAIN_PART, DataSpec
from sslkit.text.baselines import COMPRESSORS, TokenCounts, compressed_bits
from sslkit.text.corpus import Corpus
from sslkit.text.held_out import TestPart, TestText, describe_text, open_tests
from sslkit.text.language_model import LanguageModel, check_window, randomize, read_language_model, token_nats
from sslkit.text.options import TextOptions
from sslkit.text.passages import encode_pieces, text_fingerprint
from sslkit.text.specs import PerplexitySpec
from sslkit.text.tokenizer import Tokenizer
from sslkit.text.training_text import find_training_text

_TOKENS = 2**13  # in a batch
_COMPARED, _PARTS = 200, 64  # bytes that two texts hardly share by chance, and how many such parts are looked for
_BLOCKS = "blocks of text"
_BLOCK = 1024  # bytes whose mean is one sample of the bootstrap: neighbors depend on each other


@dataclass(frozen=True)
class _Model:
    """A language model, and its name in results."""

    name: str
    role: Role
    model: LanguageModel


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
        models = _read_models(spec)
        checkpoint, tokenizer = models[0].model.checkpoint, models[0].model.tokenizer
        corpus, tests, spec = open_tests(spec, checkpoint)
        if any(test.part == "held-out" for test in tests):
            _check_held_out(models, spec)
        for each in models if spec.test else ():
            for test in tests:
                _check_unread(each, test, corpus if each.role != "other" else _training_text(each))
        counts: TokenCounts | None = None
        history: bytes | None = None
        if spec.baselines and corpus is not None:
            counts = TokenCounts.of(encode_pieces(corpus.pieces("train"), tokenizer), tokenizer.size)
            history = corpus.content("train") if tokenizer.lossless else None
        rows: list[Row] = []
        notes: list[str] = []
        for test in tests:
            say_once(f"test part: {test.name}")
            tokenizers = {each.model.tokenizer.to_bytes(): each.model.tokenizer for each in models}
            texts = {content: test.encode(each) for content, each in tokenizers.items()}
            text = texts[tokenizer.to_bytes()]
            measured = [_measure(each, texts[each.model.tokenizer.to_bytes()], spec.stride) for each in models]
            if counts is not None:
                measured.append(_Measured("token counts", "other", "", text, tokenizer, counts.unigram(text.tokens)))
                pairs = counts.bigram(text.previous, text.tokens)
                measured.append(_Measured("pair counts", "baseline", "", text, tokenizer, pairs))
            rows += _rows(test, measured)
            notes.append(describe_text(test, text, tokenizer))
            if history is not None:
                rows += _compressed(test, history)
        rows = adjust_comparisons(rows)
        notes += _compare_others(rows)
        data = [TestData(test.name, blake2b(test.content, digest_size=8).hexdigest(), len(test.content)) for test in tests]
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id if spec.stride == "auto" else None,
            settings={
                "unit": tokenizer.unit,
                "size": checkpoint.size,
                "stride": _stride(checkpoint.size, spec.stride),
                "seed": spec.seed,
            },
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=Data(tests=data),
            rows=rows,
            notes=notes,
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
    weights: str  # hash
    text: TestText
    tokenizer: Tokenizer
    nats: NDArray[np.float64]


def _read_models(spec: PerplexitySpec) -> list[_Model]:
    """Return the checkpoint, the same network with random weights, and other models; raises SslkitError for what has no bits.

    Units that lose text leave out different parts of it: only models with the same tokenizer are compared then.
    """
    device, _ = choose_device(spec.device)
    first = read_language_model(spec.ckpt, spec.part, "next").to(device)
    models = [_Model(CHECKPOINT, "checkpoint", first)]
    if spec.baselines:
        models.append(_Model(RANDOM, "random", randomize(first, spec.seed)))
    check_window(first)
    for name in spec.against:
        with renamed_flags({"ckpt": "against"}):
            other = read_language_model(name, MAIN_PART, "next").to(device)
            check_window(other)
        lossless = first.tokenizer.lossless and other.tokenizer.lossless
        if not lossless and other.tokenizer.to_bytes() != first.tokenizer.to_bytes():
            units = sorted({first.tokenizer.unit, other.tokenizer.unit})
            problem = f"{name} splits text in another way than the checkpoint, and {' and '.join(units)} lose a part of it"
            raise SslkitError(problem, "compare models of bytes or byte-level BPE, or of one tokenizer", flag="against")
        models.append(_Model(name, "other", other))
    return models


def _check_held_out(models: list[_Model], spec: PerplexitySpec) -> None:
    """Raise SslkitError if a model was trained on a part of what is held out of `--data` here."""
    assert spec.data is not None
    kept, tested = spec.table(TextOptions), text_fingerprint(spec.data, spec.reindex)
    for each in models:
        metadata = each.model.checkpoint.metadata
        theirs = DataSpec().with_recorded(metadata.get("spec"), same_data=False).table(TextOptions)
        if metadata["data"] != tested:
            continue
        flags = [name for name in ("held_out", "documents") if getattr(theirs, name) != getattr(kept, name)]
        if theirs.held_out < kept.held_out or "documents" in flags:
            trained = ", ".join(f"{flag_name(name)} {getattr(theirs, name)}" for name in flags)
            raise SslkitError(
                f"{each.name} was trained with {trained}, on a part of the text that it is tested on",
                "name a text that none has read with --test",
                flag="against" if each.role == "other" else flags[0],
            )


def _training_text(each: _Model) -> Corpus | None:
    """Return the text that a model was trained on, None if it is not there as it was."""
    return find_training_text(DataSpec(), each.model.checkpoint)[0]


def _check_unread(each: _Model, test: TestPart, trained_on: Corpus | None) -> None:
    """Raise SslkitError if most of a text occurs, byte by byte, in the text that a model was trained on."""
    if trained_on is None:
        return
    content, training = test.content, trained_on.content("train")
    starts = range(0, len(content) - _COMPARED + 1, max(_COMPARED, len(content) // _PARTS))
    parts = [content[start : start + _COMPARED] for start in starts]
    copied = sum(part in training for part in parts)
    if copied > len(parts) / 2:  # a shorter text has no parts, and passes
        share = "all" if copied == len(parts) else f"{copied / len(parts):.0%}"
        raise SslkitError(
            f"{share} of {test.name} stands in the text that {each.name} was trained on",
            "name a text that none has read",
            flag="test",
        )
    if copied:
        say_once(f"note: {copied / len(parts):.0%} of {test.name} stands in the text that {each.name} was trained on")


def _stride(size: int, stride: int | Literal["auto"]) -> int:
    if stride != "auto" and stride > size:
        raise SslkitError(f"{stride} is more than a window of {size} tokens", f"use at most {size}", flag="stride")
    return size // 2 if stride == "auto" else stride


def _measure(each: _Model, text: TestText, stride: int | Literal["auto"]) -> _Measured:
    """Return what a model reaches on a text."""
    model, size = each.model, each.model.checkpoint.size
    nats = token_losses(model, text, size, _stride(size, stride))
    return _Measured(each.name, each.role, weights_hash(model.encoder), text, model.tokenizer, nats)


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
            losses = token_nats(logits, targets[places].to(device)).double().cpu()
            for start, row in zip(starts[first : first + batch], losses, strict=True):
                stop = start + size
                if stop > done:
                    nats[done:stop] = row[done - start :]
                    progress.advance(stop - done)
                    done = stop
    return nats.numpy()


def _rows(test: TestPart, measured: list[_Measured]) -> list[Row]:
    """Return the rows of models on one text, compared with the first by blocks of it."""
    words = len(test.content.split())
    blocks = max(1, len(test.content) // _BLOCK)
    rows: list[Row] = []
    outcomes = CheckpointOutcomes[Totals](partial(compare_ratios, unit=_BLOCKS))
    for each in measured:
        counted = each.text.counted
        places, sizes = _blocks(each.text, each.tokenizer, blocks)
        nats = np.bincount(places, weights=each.nats * counted, minlength=blocks).astype(np.float64)
        totals = Totals(nats / math.log(2) if each.tokenizer.lossless else nats, sizes)
        total, tokens = float(nats.sum()), int(counted.sum())
        metrics = [
            _headline(totals, len(test.content), tokens, each.tokenizer.lossless),
            _plain("perplexity per token", math.exp(total / tokens), tokens, "tokens"),
            _plain("perplexity per word", math.exp(min(700.0, total / max(1, words))), words, "words"),
        ]
        comparisons = outcomes.compare(each.role, 0, None, totals)
        rows.append(Row(each.name, metrics, test=test.name, comparisons=comparisons, weights=each.weights, role=each.role))
    return rows


def _compare_others(rows: list[Row]) -> list[str]:
    """Return which of two models predicts a text better, for each model of `--against`."""
    notes = []
    for row in rows:
        for comparison in row.comparisons.values() if row.role == "other" and row.weights else ():
            difference, low, high = comparison.difference, comparison.low, comparison.high
            if difference is None or low is None or high is None:
                continue
            if low <= 0 <= high:
                verdict = "not distinguishable from the checkpoint"
            else:
                verdict = f"{'better' if difference < 0 else 'worse'} than the checkpoint"
            name = row.metrics[0].name
            notes.append(f"{row.model}: {verdict}, {difference:+.3f} {name} (95% interval {low:.3f} to {high:.3f}).")
    return notes


def _blocks(text: TestText, tokenizer: Tokenizer, blocks: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the block of each token `[N]`, and how much of the text each block has `[blocks]`.

    Blocks are as long, in bytes, and so the same whatever the tokenizer; in tokens where it loses text.
    """
    lengths = tokenizer.byte_lengths()[text.tokens] if tokenizer.lossless else text.counted.astype(np.int64)
    ends = lengths.cumsum()
    places = (np.maximum(ends - 1, 0) * blocks // ends[-1]).astype(np.int64)
    return places, np.bincount(places, weights=lengths, minlength=blocks).astype(np.float64)


def _headline(totals: Totals, size: int, tokens: int, lossless: bool) -> Metric:
    """Return bits per byte, or nats per token of a unit that loses a part of the text, with the 95% interval."""
    name, n, unit_of_n = ("bits per byte", size, "bytes") if lossless else ("nats per token", tokens, "tokens")
    low, high, method = interval_of_ratio(totals, _BLOCKS)
    value = float(totals.sums.sum() / n)
    return Metric(name, value, low, high, method, n=n, unit_of_n=unit_of_n, higher_is_better=False, unit="other")


def _plain(name: str, value: float, n: int, unit: str) -> Metric:
    return Metric(name, value, n=n, unit_of_n=unit, higher_is_better=False, unit="other")


def _compressed(test: TestPart, history: bytes) -> list[Row]:
    """Return rows of programs that compress: by how much a compressed training text grows if the test text follows."""
    rows = []
    for name in COMPRESSORS:
        bits = compressed_bits(name, history, test.content) / len(test.content)
        metric = Metric("bits per byte", bits, n=len(test.content), unit_of_n="bytes", higher_is_better=False, unit="other")
        rows.append(Row(name, [metric], test=test.name, role="other"))
    return rows
