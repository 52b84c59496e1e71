"""Word translation: vectors of one language mapped onto those of another, and how often the nearest word is a translation."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.result import Metric, Role, Row
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.models import CHECKPOINT
from sslkit.evaluation.notes import count
from sslkit.evaluation.splits import draw_held_out
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, interval_of_mean

_CHUNK = 256  # words compared with all others at once
_NEAR = 10  # neighbors whose mean cosine CSLS subtracts
_RANKS = (1, 5, 10)


@dataclass(frozen=True)
class Dictionary:
    """Translations: for each word of the source, as its row, the rows of its translations; and how many others there were."""

    translations: dict[int, set[int]]
    skipped: int

    def pairs(self) -> tuple[Tensor, Tensor]:
        """Return the rows of all pairs, int64 `[N]` each."""
        pairs = [(source, target) for source, targets in self.translations.items() for target in sorted(targets)]
        first, second = torch.tensor(pairs).unbind(1)
        return first, second

    def fingerprint(self) -> str:
        """Return a hash of all pairs."""
        pairs = sorted((source, sorted(targets)) for source, targets in self.translations.items())
        return blake2b(repr(pairs).encode(), digest_size=8).hexdigest()

    def hold_out(self, share: float, seed: int) -> tuple["Dictionary", "Dictionary"]:
        """Return what is kept and what is held out: a share of the words of the source, drawn by the seed."""
        chosen = draw_held_out(len(self.translations), share, seed)
        parts: tuple[dict[int, set[int]], dict[int, set[int]]] = {}, {}
        for held_out, (word, targets) in zip(chosen, self.translations.items(), strict=True):
            parts[int(held_out)][word] = targets
        return Dictionary(parts[0], self.skipped), Dictionary(parts[1], self.skipped)

    def without(self, words: Iterable[int]) -> "Dictionary":
        """Return the translations of all other words."""
        left_out = set(words)
        return Dictionary({row: targets for row, targets in self.translations.items() if row not in left_out}, self.skipped)


def read_dictionary(
    lines: list[tuple[int, str]], file: str, source: dict[str, int], target: dict[str, int], flag: str
) -> Dictionary:
    """Return a file of two words per line; raises SslkitError for other lines. Words without a vector are skipped."""
    translations: dict[int, set[int]] = {}
    skipped = 0
    for number, line in lines:
        words = line.lower().split()
        if len(words) != 2:
            raise SslkitError(f"line {number} of {file} is {line!r}", "a word and its translation are expected", flag=flag)
        if words[0] in source and words[1] in target:
            translations.setdefault(source[words[0]], set()).add(target[words[1]])
        else:
            skipped += 1
    return Dictionary(translations, skipped)


def normalize(vectors: Tensor) -> Tensor:
    """Return vectors `[N, D]` of unit length, centered, of unit length again (Artetxe et al., 2018, section 3.1)."""
    unit = F.normalize(vectors.double(), dim=1)
    return F.normalize(unit - unit.mean(dim=0), dim=1)


def orthogonal_map(source: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal W `[D, D]` for which `source @ W` is nearest to `target`, `[N, D]` each (Schönemann, 1966)."""
    left, _, right = torch.linalg.svd(source.T @ target)
    product: Tensor = left @ right
    return product


def ranks_of_translations(source: Tensor, target: Tensor, test: Dictionary, csls: bool) -> Tensor:
    """Return the rank of the best translation of each word, 1 for the nearest of all words, int64 `[N]`; ties count against it.

    Rows `[N, D]` are unit vectors in one space. By `csls`, cosines are corrected for words that are near to many (Conneau et
    al., 2018, equation 4): less half the mean cosine of each target to its ten nearest words of the source.
    """
    correction = torch.zeros(len(target), dtype=target.dtype)
    if csls:
        near = min(_NEAR, len(source))
        nearest = [(chunk @ source.T).topk(near, dim=1).values.mean(dim=1) for chunk in target.split(_CHUNK)]
        correction = torch.cat(nearest) / 2
    ranks = []
    for rows in torch.tensor(list(test.translations)).split(_CHUNK):
        scores = source[rows] @ target.T - correction  # what is subtracted for the word itself is the same for all targets
        for row, values in zip(rows.tolist(), scores, strict=True):
            best = values[sorted(test.translations[row])].max()
            ranks.append(int((values >= best).sum()))
    return torch.tensor(ranks)


def translation_rows(
    vectors: tuple[Tensor, Tensor], random: Tensor, parts: tuple[Dictionary, Dictionary], test: str, weights: str
) -> list[Row]:
    """Return rows of source and target vectors `[N, D]` on a test part: by CSLS, by cosine, and of random source vectors."""
    target = normalize(vectors[1])
    first, second = parts[0].pairs()
    rows: list[Row] = []
    outcomes = CheckpointOutcomes[Answers](compare_answers)
    models: tuple[tuple[str, Role, Tensor, bool], ...] = (
        (CHECKPOINT, "checkpoint", vectors[0], True),
        ("checkpoint, by cosine", "other", vectors[0], False),
        ("random vectors", "random", random, True),
    )
    for name, role, table, csls in models:
        source = normalize(table)
        mapped = source @ orthogonal_map(source[first], target[second])
        ranks = ranks_of_translations(mapped, target, parts[1], csls)
        comparisons = outcomes.compare(role, 0, None, Answers(np.arange(len(ranks)), (ranks == 1).double()))
        hashed = "" if role == "random" else weights
        rows.append(Row(name, _metrics(ranks, parts[1]), test=test, comparisons=comparisons, weights=hashed, role=role))
    return adjust_comparisons(rows)


def _metrics(ranks: Tensor, test: Dictionary) -> list[Metric]:
    """Return precision at 1, at 5 and at 10, and how many pairs have words without a vector."""
    metrics = []
    for rank in _RANKS:
        correct = (ranks <= rank).double()
        low, high, method = interval_of_mean(correct)
        metrics.append(Metric(f"P@{rank}", float(correct.mean()), low, high, method, n=len(ranks), unit_of_n="words"))
    pairs = test.skipped + sum(map(len, test.translations.values()))
    return [*metrics, Metric("skipped", test.skipped, n=pairs, unit_of_n="lines", higher_is_better=False, unit="count")]


def check_size(dictionary: Dictionary, least: int, source: str, flag: str) -> None:
    """Raise SslkitError, naming the flag, if a dictionary has fewer pairs of words with vectors than are needed."""
    pairs = sum(map(len, dictionary.translations.values()))
    if pairs < least:
        problem = f"{count(pairs, 'pair')} of {source} have vectors"
        raise SslkitError(problem, f"at least {least} are needed", flag=flag)


def same_spelling(source: dict[str, int], target: dict[str, int]) -> Dictionary:
    """Return the words that are spelled alike in both."""
    return Dictionary({row: {target[word]} for word, row in source.items() if word in target}, 0)
