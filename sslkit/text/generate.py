"""`sslkit generate`: text that a language model goes on with, and how much of it stands in the training text."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.precision import choose_device
from sslkit.text.language_model import LanguageModel, read_language_model
from sslkit.text.specs import GenerateSpec
from sslkit.text.tokenizer import END
from sslkit.text.training_text import find_training_text

_DISTINCT = (1, 2, 3)  # words in a row (Li et al., 2016)
_COPIED = (4, 8, 13)  # words in a row that are looked up in the training text


@dataclass(frozen=True)
class GenerateResult:
    """Generated texts; `distinct` and `copied` are shares of their runs of n words, by n.

    `distinct` runs are different from each other, `copied` ones occur in the training text (None if that is not there).
    """

    texts: list[str]
    distinct: dict[str, float]
    copied: dict[str, float] | None
    checkpoint: str
    seed: int


def generate(spec: GenerateSpec) -> GenerateResult:
    """Generate text as `sslkit generate` does; the same text for the same seed.

    When the context is full, its oldest tokens are dropped. Raises SslkitError for a checkpoint that predicts no next tokens.
    """
    spec.check_modality("text")
    device, _ = choose_device(spec.device)
    model = read_language_model(spec.ckpt, spec.part, "next").to(device)
    tokenizer = model.tokenizer
    prompt = torch.from_numpy(tokenizer.encode([spec.prompt])[0]).long()
    start = torch.cat([torch.tensor([tokenizer.special(END)]), prompt]).repeat(spec.count, 1)
    rows = continue_tokens(model, start.to(device), spec)
    texts = []
    for row in rows[:, 1:].tolist():
        generated = row[len(prompt) :]
        end = generated.index(tokenizer.special(END)) if tokenizer.special(END) in generated else len(generated)
        texts.append(tokenizer.decode(row[: len(prompt) + end]))
    words = [text.removeprefix(spec.prompt).split() for text in texts]
    return GenerateResult(texts, _distinct(words), _copied(words, model.checkpoint, spec), spec.ckpt, spec.seed)


@torch.no_grad()
def continue_tokens(model: LanguageModel, tokens: Tensor, spec: GenerateSpec) -> Tensor:
    """Return token ids `[N, T]` with `--length` more, drawn one after the other; after an end of a document others follow."""
    random = torch.Generator().manual_seed(spec.seed)
    encoder, end = model.encoder, model.tokenizer.special(END)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(spec.length):
        scores = model.logits(encoder.next_states(tokens[:, -model.checkpoint.size :])[:, -1])
        scores[:, encoder.first_special : end] = float("-inf")  # special tokens that no text has
        chosen = choose_tokens(scores.cpu(), spec.temperature, spec.top_k, spec.top_p, random).to(tokens.device)
        tokens = torch.cat([tokens, chosen[:, None]], dim=1)
        ended |= chosen == end
        if ended.all():
            break
    return tokens


def choose_tokens(scores: Tensor, temperature: float, top_k: int | None, top_p: float, random: torch.Generator) -> Tensor:
    """Return a token for each row of scores `[N, ids]`, int64 `[N]`.

    `top_k`: among the k likeliest. `top_p`: among the fewest tokens that have this probability together (Holtzman et al.,
    2020, section 3.1). A temperature of 0 takes the likeliest.
    """
    if temperature == 0:
        return scores.argmax(dim=1)
    sorted_scores, order = scores.sort(dim=1, descending=True, stable=True)
    probabilities = (sorted_scores / temperature).softmax(dim=1)
    if top_k is not None:
        probabilities[:, top_k:] = 0
        probabilities = probabilities / probabilities.sum(dim=1, keepdim=True)
    before = probabilities.cumsum(dim=1) - probabilities
    probabilities[before >= top_p] = 0  # the likeliest is never among these
    places = torch.multinomial(probabilities, 1, generator=random)
    return order.gather(1, places)[:, 0]


def _distinct(texts: list[list[str]]) -> dict[str, float]:
    """Return the share of different runs among all runs of n words, by n."""
    shares = {}
    for n in _DISTINCT:
        runs = [run for words in texts for run in _runs(words, n)]
        shares[str(n)] = len(set(runs)) / len(runs) if runs else 1.0
    return shares


def _copied(texts: list[list[str]], checkpoint: Checkpoint, spec: GenerateSpec) -> dict[str, float] | None:
    """Return the share of the runs of n words that the training text has, by n; None if that text is not there."""
    corpus, _ = find_training_text(spec, checkpoint)
    if corpus is None:
        return None
    runs = {n: [run for words in texts for run in _runs(words, n)] for n in _COPIED}
    distinct = {n: set(some) for n, some in runs.items()}
    present: dict[int, set[tuple[str, ...]]] = {n: set() for n in _COPIED}
    rest: list[str] = []
    for piece in corpus.pieces("train"):
        words = rest + piece.text.split()
        for n in _COPIED:
            present[n].update(distinct[n].intersection(_runs(words, n)))
        rest = words[-max(_COPIED) :]
    return {str(n): sum(run in present[n] for run in some) / len(some) if some else 0.0 for n, some in runs.items()}


def _runs(words: list[str], n: int) -> Iterable[tuple[str, ...]]:
    return zip(*(words[start:] for start in range(n)), strict=False)
