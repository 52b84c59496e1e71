"""`sslkit pseudo-perplexity`: how well a masked language model predicts each token of a text from all others."""

import math
import time
from functools import partial
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import say_once, show_progress
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Metric, Result, Role, Row, TestData
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import CHECKPOINT, RANDOM, weights_hash
from sslkit.evaluation.notes import count
from sslkit.evaluation.statistics import Totals, adjust_comparisons, compare_ratios, interval_of_ratio
from sslkit.text.baselines import TokenCounts
from sslkit.text.held_out import TestText, describe_text, open_tests
from sslkit.text.language_model import LanguageModel, check_window, randomize, read_language_model
from sslkit.text.passages import encode_pieces
from sslkit.text.specs import PseudoPerplexitySpec
from sslkit.text.tokenizer import CLS, MASK, SEP

_TOKENS = 2**13  # in a batch


class PseudoPerplexity(Evaluation):
    """Measure how well a masked language model predicts each token from all others."""

    verb = "pseudo-perplexity"
    Options = PseudoPerplexitySpec
    labels = "none"
    requires = ("tokens",)
    modalities = ("text",)
    protocols = (
        Protocol(
            "pseudo-perplexity/passages-v1",
            "each token of passages masked alone (Salazar et al., 2020); not comparable with perplexity",
            {"passages": 64},
            deterministic=True,
        ),
    )

    def run(self, spec: PseudoPerplexitySpec) -> Result:
        """Measure a checkpoint, the same network with random weights, and the frequencies of tokens.

        Raises SslkitError for a checkpoint that predicts no masked tokens, and where there is nothing to test on.
        """
        started_at = time.monotonic()
        spec.check_modality("text")
        model = read_language_model(spec.ckpt, spec.part, "masked").to(choose_device(spec.device)[0])
        tokenizer, checkpoint = model.tokenizer, model.checkpoint
        check_window(model)
        models: list[tuple[str, Role, LanguageModel]] = [(CHECKPOINT, "checkpoint", model)]
        if spec.baselines:
            models.append((RANDOM, "random", randomize(model, spec.seed)))
        corpus, tests, spec = open_tests(spec, checkpoint)
        counts: TokenCounts | None = None
        if spec.baselines and corpus is not None:
            counts = TokenCounts.of(encode_pieces(corpus.pieces("train"), tokenizer), tokenizer.size)
        rows: list[Row] = []
        data: list[TestData] = []
        notes: list[str] = []
        for test in tests:
            say_once(f"test part: {test.name}")
            text = test.encode(tokenizer)
            places = passages(len(text.tokens), checkpoint.size - 2, spec.passages)
            counted = text.counted[places] & _counted_once(places)
            measured = [
                (name, role, weights_hash(each.encoder), masked_nats(each, text, places)) for name, role, each in models
            ]
            if counts is not None:
                measured.append(("token counts", "baseline", "", counts.unigram(text.tokens, tokenizer.first_special)[places]))
            rows += _rows(test.name, measured, counted)
            data.append(TestData(test.name, blake2b(test.content, digest_size=8).hexdigest(), int(counted.sum())))
            notes.append(f"{describe_text(test, text, tokenizer)} Measured on {count(len(places), 'passage')} of it.")
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id if spec.passages == self.protocols[0].settings["passages"] else None,
            settings={"unit": tokenizer.unit, "size": checkpoint.size, "passages": spec.passages, "seed": spec.seed},
            checkpoint=str(spec.ckpt),
            weights=rows[0].weights,
            data=Data(tests=data),
            rows=adjust_comparisons(rows),
            notes=notes,
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def pseudo_perplexity(spec: PseudoPerplexitySpec) -> Result:
    """Measure how well a masked language model predicts text, as `sslkit pseudo-perplexity` does."""
    return PseudoPerplexity().run(spec)


def passages(length: int, size: int, limit: int) -> NDArray[np.int64]:
    """Return the places of the tokens of passages `[passages, size]`, at most so many, spread evenly over a text."""
    size = min(size, length)
    starts = np.linspace(0, length - size, min(limit, math.ceil(length / size))).astype(np.int64)
    return starts[:, None] + np.arange(size)


def _counted_once(places: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which tokens of passages `[passages, size]` are in none before them: the last passages of a text may overlap."""
    first = np.zeros(places.shape, dtype=np.bool_)
    first.flat[np.unique(places, return_index=True)[1]] = True
    return first


@torch.no_grad()
def masked_nats(model: LanguageModel, text: TestText, places: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return -log p of each token of passages `[passages, size]`, in nats, when it alone is masked."""
    tokenizer, device = model.tokenizer, model.encoder.device
    cls, mask, sep = (tokenizer.special(name) for name in (CLS, MASK, SEP))
    batch = max(1, _TOKENS // (places.shape[1] + 2))
    nats = np.zeros(places.shape)
    with show_progress("masking tokens", places.size) as progress:
        for number, passage in enumerate(places):
            target = torch.from_numpy(text.tokens[passage].astype(np.int64))
            framed = torch.cat([torch.tensor([cls]), target, torch.tensor([sep])])
            for masked in torch.arange(len(target)).split(batch):
                rows = framed.repeat(len(masked), 1)
                rows[torch.arange(len(masked)), masked + 1] = mask
                states = model.encoder.states(rows.to(device))
                logits = model.logits(states[torch.arange(len(masked), device=device), (masked + 1).to(device)])
                nats[number, masked.numpy()] = _nats(logits, target[masked].to(device), tokenizer.first_special).numpy()
                progress.advance(len(masked))
    return nats


def _nats(logits: Tensor, target: Tensor, pieces: int) -> Tensor:
    """Return -log p of tokens `[N]` among the pieces; 0 for the end of a document, which is none."""
    is_piece = target < pieces
    likely = logits[:, :pieces].double().log_softmax(dim=1).gather(1, target.where(is_piece, 0)[:, None])[:, 0]
    return -likely.where(is_piece, 0.0).cpu()


def _rows(test: str, measured: list[tuple[str, Role, str, NDArray[np.float64]]], counted: NDArray[np.bool_]) -> list[Row]:
    """Return the rows of models on the same passages, compared with the first."""
    rows: list[Row] = []
    outcomes = CheckpointOutcomes[Totals](partial(compare_ratios, unit="passages"))
    sizes, tokens = counted.sum(axis=1).astype(np.float64), int(counted.sum())
    for name, role, weights, nats in measured:
        sums = (nats * counted).sum(axis=1)
        totals, mean = Totals(sums, sizes), float(sums.sum() / tokens)
        low, high, method = interval_of_ratio(totals, "passages")
        described: dict[str, Any] = {"n": tokens, "unit_of_n": "tokens", "higher_is_better": False, "unit": "other"}
        metrics = [
            Metric("nats per token", mean, low, high, method, **described),
            Metric("pseudo-perplexity", math.exp(mean), **described),
        ]
        comparisons = outcomes.compare(role, 0, None, totals)
        rows.append(Row(name, metrics, test=test, comparisons=comparisons, weights=weights, role=role))
    return rows
