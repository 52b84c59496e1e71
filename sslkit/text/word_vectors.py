"""`sslkit words`: do word vectors say what people say? Files of similarities and of analogies, in their usual formats."""

import math
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import read_model
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.statistics import interval
from sslkit.text.specs import WordsSpec

_AT_ONCE = 256  # questions, compared with all words


@dataclass(frozen=True)
class SimilarityRow:
    """Hold how cosines of pairs of words go with what people said: Spearman's correlation, -1 to 1."""

    file: str
    spearman: float
    p_value: float
    pairs: int
    left_out: int  # pairs with a word that has no vector


@dataclass(frozen=True)
class AnalogyRow:
    """Hold how often the word nearest to b - a + c is d, those three excepted; shares of 1."""

    file: str
    section: str
    accuracy: float
    accuracy_interval: tuple[float, float]
    questions: int
    left_out: int


@dataclass(frozen=True)
class WordsResult:
    """Hold what `sslkit words --json` prints."""

    command: str
    checkpoint: str
    weights: str
    words: int
    similarity: list[SimilarityRow]
    analogies: list[AnalogyRow]


def words(spec: WordsSpec) -> WordsResult:
    """Evaluate word vectors on files of similarities and analogies; everything `sslkit words` does.

    Similarities are lines of two words and a number, with tabs, commas or blanks between them (WordSim-353, MEN); other
    columns are passed over (SimLex-999 has the part of speech before the number).
    Analogies are lines of four words, sections begin with a colon (Mikolov et al., 2013a). Questions with words that
    have no vector are left out and counted. Raises SslkitError for other checkpoints, and for files without such lines.
    """
    if not spec.similarity and not spec.analogies:
        raise SslkitError("which questions?", "give --similarity FILE or --analogies FILE")
    checkpoint = read_model(spec.ckpt)
    encoder = checkpoint.build_encoder()
    vocabulary = encoder.vocabulary()
    if vocabulary is None:
        raise SslkitError(f"{spec.ckpt} holds no word vectors", "expected a checkpoint of skipgram", flag="ckpt")
    known = {word: place for place, word in enumerate(vocabulary[0])}
    vectors = F.normalize(vocabulary[1], dim=1)
    result = WordsResult(
        command="words",
        checkpoint=str(spec.ckpt),
        weights=weights_hash(encoder),
        words=len(known),
        similarity=[_similarity(file, known, vectors) for file in spec.similarity],
        analogies=[row for file in spec.analogies for row in _analogies(file, known, vectors)],
    )
    append_result(checkpoint.path.parent, {**asdict(result), "protocol": None, "rows": []})
    return result


def _similarity(file: str, known: dict[str, int], vectors: torch.Tensor) -> SimilarityRow:
    found, said, left_out = [], [], 0
    for number, line in _lines(file, "similarity"):
        parts = [part for part in re.split(r"[\t,;]|\s+", line) if part]
        score = next((value for part in parts[2:] if (value := _number(part)) is not None), None)
        if score is None:
            if number == 1:  # a header
                continue
            raise SslkitError(f"line {number} of {file} is {line!r}", "expected two words and a number", flag="similarity")
        first, second = parts[0].lower(), parts[1].lower()
        if first in known and second in known:
            found.append(float(vectors[known[first]] @ vectors[known[second]]))
            said.append(score)
        else:
            left_out += 1
    if len(found) < 3 or len(set(said)) < 2:
        raise SslkitError(
            f"{len(found)} pairs in {file} have vectors", "expected three or more, not all alike", flag="similarity"
        )
    if len(set(found)) < 2:
        raise SslkitError(f"all pairs in {file} have the same cosine", "the vectors were never trained", flag="similarity")
    told = spearmanr(found, said)
    return SimilarityRow(file, float(told.statistic), float(told.pvalue), len(found), left_out)


def _number(text: str) -> float | None:
    """Return the number that a text is; None for one that is not finite, or none."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _analogies(file: str, known: dict[str, int], vectors: torch.Tensor) -> list[AnalogyRow]:
    sections: dict[str, list[list[int]]] = {}
    left_out: dict[str, int] = {}
    section = Path(file).stem
    for number, line in _lines(file, "analogies"):
        if line.startswith(":"):
            section = line.removeprefix(":").strip()
            continue
        parts = line.lower().split()
        if len(parts) != 4:
            raise SslkitError(
                f"line {number} of {file} is {line!r}", "expected four words, or a section after a colon", flag="analogies"
            )
        questions = sections.setdefault(section, [])
        if all(part in known for part in parts):
            questions.append([known[part] for part in parts])
        else:
            left_out[section] = left_out.get(section, 0) + 1
    asked = {name: questions for name, questions in sections.items() if questions}
    if not asked:
        raise SslkitError(f"no question in {file} has vectors for all of its words", flag="analogies")
    right = {name: _answered(torch.tensor(questions), vectors) for name, questions in asked.items()}
    if len(sections) > 1:
        right["all"] = torch.cat(list(right.values()))
        left_out["all"] = sum(left_out.values())
    return [
        AnalogyRow(file, name, float(hits.mean()), interval(hits), len(hits), left_out.get(name, 0))
        for name, hits in right.items()
    ]


def _answered(questions: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return 1 where the answer to `[N, 4]` is right (3CosAdd; Levy & Goldberg, 2014, equation 2), float64 `[N]`."""
    found = []
    for piece in questions.split(_AT_ONCE):
        a, b, c, d = piece.unbind(1)
        scores = (vectors[b] - vectors[a] + vectors[c]) @ vectors.T
        scores.scatter_(1, piece[:, :3], -torch.inf)
        found.append(scores.argmax(dim=1) == d)
    return torch.cat(found).double()


def _lines(file: str, flag: str) -> list[tuple[int, str]]:
    """Return the lines of a file that say something, with their numbers."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise SslkitError(f"cannot read {file}: {error.strerror}", flag=flag) from error
    except UnicodeDecodeError as error:
        raise SslkitError(f"{file} is not UTF-8 text", flag=flag) from error
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1)]
    said = [(number, line) for number, line in lines if line and not line.startswith("#")]
    if not said:
        raise SslkitError(f"{file} is empty", flag=flag)
    return said
