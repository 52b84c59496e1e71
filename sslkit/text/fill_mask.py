"""`sslkit fill-mask`: what a masked language model puts in the place of a mask."""

from dataclasses import dataclass

import torch

from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.engine.precision import choose_device
from sslkit.text.language_model import read_language_model
from sslkit.text.specs import FillMaskSpec
from sslkit.text.tokenizer import CLS, MASK, SEP, Tokenizer

_MASK = "[MASK]"


@dataclass(frozen=True)
class Answer:
    """A piece for the mask, its probability, and the text with it."""

    piece: str
    probability: float
    text: str


@dataclass(frozen=True)
class FillMaskResult:
    """The likeliest answers, the best first; of candidates, with their probabilities among all pieces."""

    answers: list[Answer]
    checkpoint: str


@torch.no_grad()
def fill_mask(spec: FillMaskSpec) -> FillMaskResult:
    """Fill the mask of a text as `sslkit fill-mask` does.

    Raises SslkitError for a text without exactly one mask or longer than the context, for candidates that are no pieces, and
    for a checkpoint that predicts no masked tokens.
    """
    if spec.text.count(_MASK) != 1:
        raise SslkitError(f"the text has {spec.text.count(_MASK)} {_MASK}, expected one", flag="text")
    device, _ = choose_device(spec.device)
    model = read_language_model(spec.ckpt, spec.part, "masked").to(device)
    tokenizer, size = model.tokenizer, model.checkpoint.size
    before, after = (part.strip() if not tokenizer.lossless else part for part in spec.text.split(_MASK))
    first, second = (ids.tolist() for ids in tokenizer.encode([before.removesuffix(" "), after]))
    tokens = [tokenizer.special(CLS), *first, tokenizer.special(MASK), *second, tokenizer.special(SEP)]
    if len(tokens) > size:
        raise SslkitError(f"the text has {len(tokens)} tokens, the model takes {size}", "shorten it", flag="text")
    states = model.encoder.states(torch.tensor([tokens], device=device))[0, 1 + len(first)]
    scores = model.logits(states)[: tokenizer.first_special]
    probabilities = scores.softmax(dim=0).cpu()
    chosen = [_candidate(name, tokenizer) for name in spec.candidates] or range(len(probabilities))
    ranked = sorted(chosen, key=lambda token: -float(probabilities[token]))[: spec.top]
    answers = []
    for token in ranked:
        piece = tokenizer.piece(token)
        answers.append(Answer(piece.strip(), float(probabilities[token]), tokenizer.decode([*first, token, *second])))
    return FillMaskResult(answers, spec.ckpt)


def _candidate(name: str, tokenizer: Tokenizer) -> int:
    """Return the id of a candidate; raises SslkitError if it is not one piece."""
    ids = tokenizer.encode([f" {name}" if tokenizer.lossless else name])[0]
    if len(ids) != 1 or ids[0] >= tokenizer.first_special:
        problem = f"{name} is {len(ids)} pieces of the tokenizer" if len(ids) > 1 else f"{name} is no piece of the tokenizer"
        raise SslkitError(problem, did_you_mean(name, tokenizer.pieces), flag="candidates")
    return int(ids[0])
