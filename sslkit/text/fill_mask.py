"""`sslkit fill-mask`: what a masked language model puts in the place of a mask."""

from dataclasses import dataclass

from sslkit.contract.errors import SslkitError
from sslkit.engine.precision import choose_device
from sslkit.text.answers import MASKED, encode_gap, score_pieces, single_piece
from sslkit.text.language_model import read_language_model
from sslkit.text.specs import FillMaskSpec


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


def fill_mask(spec: FillMaskSpec) -> FillMaskResult:
    """Fill the mask of a text as `sslkit fill-mask` does.

    Raises SslkitError for a text without exactly one mask or longer than the context, for candidates that are no pieces, and
    for a checkpoint that predicts no masked tokens.
    """
    if spec.text.count(MASKED) != 1:
        raise SslkitError(f"the text has {spec.text.count(MASKED)} {MASKED}, expected one", flag="TEXT")
    device, _ = choose_device(spec.device)
    model = read_language_model(spec.ckpt, spec.part, "masked").to(device)
    tokenizer, size = model.tokenizer, model.checkpoint.size
    gap = encode_gap(tokenizer, *spec.text.split(MASKED))
    length = len(gap.before) + len(gap.after) + 3
    if length > size:
        raise SslkitError(f"the text has {length} tokens, the model takes {size}", "shorten it", flag="TEXT")
    probabilities = score_pieces(model, [gap])[0].exp()
    chosen = [single_piece(tokenizer, name, "candidates") for name in spec.candidates] or range(len(probabilities))
    ranked = sorted(chosen, key=lambda token: -float(probabilities[token]))[: spec.top]
    answers = []
    for token in ranked:
        whole = tokenizer.decode([*gap.before.tolist(), token, *gap.after.tolist()])
        answers.append(Answer(tokenizer.piece(token).strip(), float(probabilities[token]), whole))
    return FillMaskResult(answers, spec.ckpt)
