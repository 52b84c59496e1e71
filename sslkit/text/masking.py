"""Masks of masked language models: which tokens are hidden, and what stands in their place."""

from typing import Literal

import torch
from torch import Tensor

from sslkit.contract.task import Batch
from sslkit.text.tokenizer import CLS, MASK, SEP, Tokenizer

Masking = Literal["token", "word", "span"]

_MASKED, _RANDOM = 0.8, 0.1  # shares of the chosen tokens; the rest stays (Devlin et al., 2019, section 3.1)
_SPAN = 0.2  # probability that a span ends after each token (Joshi et al., 2020, section 3.1)

_BLANKS = "ĠĊĉč"  # how byte-level BPE spells blank, line feed, tab and carriage return


def starts_word(tokenizer: Tokenizer) -> Tensor:
    """Return which ids begin a word, bool `[ids]`; special tokens do, and of bytes all."""
    pieces = ["" for _ in range(tokenizer.first_special)] if tokenizer.unit == "byte" else tokenizer.pieces
    if tokenizer.unit == "wordpiece":
        starts = [not piece.startswith("##") for piece in pieces]
    elif tokenizer.unit == "bpe":
        starts = [piece[0] in _BLANKS or not piece[0].isalnum() for piece in pieces]
    else:
        starts = [True for _ in pieces]
    return torch.tensor([*starts, *(True for _ in range(tokenizer.size - tokenizer.first_special))])


def frame_passages(tokens: Tensor, first_special: int) -> Tensor:
    """Return a class token, as much of passages `[B, T]` as fits, and a separator, `[B, T]`."""
    framed = tokens.roll(1, dims=1)
    framed[:, 0], framed[:, -1] = first_special + CLS, first_special + SEP
    return framed


def mask_tokens(
    tokens: Tensor,
    word_starts: Tensor,
    count: int,
    masking: Masking,
    first_special: int,
    masked: float = _MASKED,
    random: float = _RANDOM,
    share: float | None = None,
) -> Batch:
    """Choose `count` tokens `K` of each row `[B, T]` and hide them; special tokens, from `first_special` on, stay.

    Returns `tokens` `[B, T]` with masks, `places` `[B, K]` and `target` `[B, K]` of those chosen, and `weight` `[B, K]`: 0
    for places that are special or belong to a word that is not chosen whole. Of the chosen, shares of `masked` and `random`
    are masked and become another token at random; the others stay. With `share`, words or spans of a row are chosen until
    there are so many of its tokens, and one at least.
    """
    device, special = tokens.device, tokens >= first_special
    group = _groups(tokens, word_starts, masking, special)
    order = torch.rand(tokens.shape, device=device).gather(1, group)  # one number for each group
    order = order.masked_fill(special, 2.0)
    places = order.topk(count, dim=1, largest=False, sorted=True).indices
    target = tokens.gather(1, places)
    weight = ~special.gather(1, places)
    if share is not None:
        number = group.gather(1, places)
        begins = (number[:, :, None] == number[:, None]).long().argmax(dim=2)  # the first column of the same word
        weight = weight & (begins < ((~special).sum(dim=1, keepdim=True) * share).round().clamp(min=1))
    chosen = torch.zeros_like(special).scatter(1, places, weight)
    if masking == "word":  # of the last one there may be room for a part only
        total = torch.zeros_like(tokens).scatter_add(1, group, (~special).long())
        inside = torch.zeros_like(tokens).scatter_add(1, group, (chosen & ~special).long())
        weight = weight & (total == inside).gather(1, group.gather(1, places))
    if share is not None:  # of a word with more tokens than there is room for, one
        weight[:, 0] |= ~weight.any(dim=1) & ~special.all(dim=1)
    action = torch.rand(target.shape, device=device)
    other = torch.randint(first_special, target.shape, device=device)
    hidden = torch.where(action < masked, first_special + MASK, torch.where(action < masked + random, other, target))
    hidden = hidden.where(weight, target)
    return {"tokens": tokens.scatter(1, places, hidden), "places": places, "target": target, "weight": weight.float()}


def _groups(tokens: Tensor, word_starts: Tensor, masking: Masking, special: Tensor) -> Tensor:
    """Return the number of the token, word or span that each token of a row belongs to, int64 `[B, T]`."""
    if masking == "token":
        return torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    if masking == "word":
        return _number(word_starts[tokens], special)
    return _number(torch.rand(tokens.shape, device=tokens.device) < _SPAN, special)


def word_groups(tokens: Tensor, word_starts: Tensor, first_special: int) -> Tensor:
    """Return the number of the word that each token of a row belongs to, int64 `[B, T]`; special tokens are words alone."""
    return _number(word_starts[tokens], tokens >= first_special)


def _number(begins: Tensor, special: Tensor) -> Tensor:
    """Return the number of the group of each token, `[B, T]`, of which groups begin at; special tokens are groups alone."""
    begins = begins | special
    begins[:, 1:] |= special[:, :-1]
    return (begins.long().cumsum(dim=1) - begins[:, :1].long()).clamp(max=special.shape[1] - 1)
