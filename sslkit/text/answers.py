"""How likely answers are at a masked place, or as the continuation of a text."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.text.language_model import LanguageModel
from sslkit.text.tokenizer import CLS, END, MASK, PAD, SEP, Ids, Tokenizer

MASKED = "[MASK]"
_TOKENS = 2**13  # in a batch

Kind = Literal["next", "masked"]


@dataclass(frozen=True)
class Gap:
    """A text with one place to fill, as token ids before and after it."""

    before: Ids
    after: Ids


def encode_gap(tokenizer: Tokenizer, before: str, after: str) -> Gap:
    """Return a gap between two texts; the blank before it belongs to what fills it."""
    first, second = tokenizer.encode([before.removesuffix(" "), after])
    return Gap(first, second)


def encode_answer(tokenizer: Tokenizer, answer: str) -> Ids:
    """Return the ids of an answer that stands after a blank."""
    return tokenizer.encode([f" {answer}" if tokenizer.lossless else answer])[0]


def single_piece(tokenizer: Tokenizer, answer: str, flag: str) -> int:
    """Return the id of an answer; raises SslkitError if it is not one piece."""
    ids = encode_answer(tokenizer, answer)
    if len(ids) != 1 or ids[0] >= tokenizer.first_special:
        has = f"{answer} is {len(ids)} pieces of the tokenizer" if len(ids) > 1 else f"{answer} is no piece of the tokenizer"
        raise SslkitError(has, did_you_mean(answer, tokenizer.pieces), flag=flag)
    return int(ids[0])


@torch.no_grad()
def score_pieces(model: LanguageModel, gaps: list[Gap]) -> Tensor:
    """Return log-probabilities of all pieces at the masks of gaps, float32 `[N, pieces]`, by a masked language model.

    Gaps have room in the model's context for a class token, the mask and a separator.
    """
    tokenizer, size, device = model.tokenizer, model.checkpoint.size, model.encoder.device
    cls, mask, sep, pad = (tokenizer.special(name) for name in (CLS, MASK, SEP, PAD))
    results = []
    batch = max(1, _TOKENS // size)
    with show_progress("filling masks", len(gaps)) as progress:
        for start in range(0, len(gaps), batch):
            some = gaps[start : start + batch]
            tokens = torch.full((len(some), size), pad)
            for row, gap in enumerate(some):
                ids = np.concatenate([[cls], gap.before, [mask], gap.after, [sep]])
                tokens[row, : len(ids)] = torch.from_numpy(ids)
            states = model.encoder.states(model.encoder.without_padding(tokens).to(device))
            places = torch.tensor([1 + len(gap.before) for gap in some], device=device)
            logits = model.logits(states[torch.arange(len(some), device=device), places])
            results.append(logits[:, : tokenizer.first_special].log_softmax(dim=1).cpu())
            progress.advance(len(some))
    return torch.cat(results)


@torch.no_grad()
def score_continuations(model: LanguageModel, contexts: list[Ids], answers: list[Ids]) -> Tensor:
    """Return the log-probability of each answer after each context, float32 `[N, answers]`, by a causal language model.

    A document begins before each context. Contexts leave room for the longest answer.
    """
    tokenizer, size, device = model.tokenizer, model.checkpoint.size, model.encoder.device
    document_end = tokenizer.special(END)
    rows = [(np.concatenate([[document_end], context, answer]), len(answer)) for context in contexts for answer in answers]
    totals = []
    batch = max(1, _TOKENS // size)
    with show_progress("scoring continuations", len(rows)) as progress:
        for start in range(0, len(rows), batch):
            some = rows[start : start + batch]
            tokens = torch.full((len(some), 1 + max(len(ids) for ids, _ in some)), tokenizer.special(PAD))
            for number, (ids, _) in enumerate(some):
                tokens[number, : len(ids)] = torch.from_numpy(ids)
            states = model.encoder.next_states(tokens[:, :-1].to(device))
            ends = [(number, len(ids) - 1, length) for number, (ids, length) in enumerate(some)]
            places = [(number, place) for number, end, length in ends for place in range(end - length, end)]
            row, column = torch.tensor(places).unbind(1)
            scores = model.logits(states[row.to(device), column.to(device)]).log_softmax(dim=1)
            nats = scores.gather(1, tokens[row, column + 1][:, None].to(device))[:, 0].cpu()
            totals.append(torch.zeros(len(some)).index_add(0, row, nats))
            progress.advance(len(some))
    return torch.cat(totals).view(len(contexts), len(answers))
