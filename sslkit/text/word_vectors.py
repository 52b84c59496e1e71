"""`sslkit word-vectors`: word vectors on similarity and analogy benchmarks, from files in the usual formats."""

import math
import re
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr

from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Comparison, Data, Metric, Result, Row, TestData
from sslkit.data.tables import read_lines
from sslkit.engine.checkpoint import read_model
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.models import CHECKPOINT, weights_hash
from sslkit.evaluation.notes import count
from sslkit.evaluation.statistics import interval_of_mean
from sslkit.text.specs import WordVectorSpec

_CHUNK = 256  # questions compared with all words at once


@dataclass(frozen=True)
class Vocabulary:
    """Words by row, and their unit vectors `[N, D]`."""

    rows: dict[str, int]
    vectors: torch.Tensor


class WordVectorEvaluation(Evaluation):
    """Evaluate word vectors on similarity and analogy benchmarks."""

    verb = "word-vectors"
    Options = WordVectorSpec
    labels = "none"
    modalities = ("text",)
    protocols = (
        Protocol(
            "word-vectors/benchmarks-v1",
            "Spearman correlation of cosines with human ratings, and accuracy on analogies by 3CosAdd",
            {},
            deterministic=True,
        ),
    )

    def run(self, spec: WordVectorSpec) -> Result:
        """Evaluate word vectors on files of similarities and analogies.

        Similarities are lines of two words and a number, separated by tabs, commas or blanks (WordSim-353, MEN); other
        columns are ignored (SimLex-999 has the part of speech before the number). Analogies are lines of four words,
        sections begin with a colon (Mikolov et al., 2013a). Lines with words that have no vector are skipped and counted.
        Raises SslkitError for other checkpoints, and for files without such lines.
        """
        started_at = time.monotonic()
        if not spec.similarity and not spec.analogies:
            raise SslkitError("no benchmark is named", "use --similarity FILE or --analogies FILE")
        checkpoint = read_model(spec.ckpt, part=spec.part)
        encoder = checkpoint.build_encoder()
        table = encoder.vocabulary()
        if table is None:
            raise SslkitError(f"{spec.ckpt} has no word vectors", "word-vectors needs a checkpoint of skipgram", flag="ckpt")
        vocabulary = Vocabulary({word: row for row, word in enumerate(table[0])}, F.normalize(table[1], dim=1))
        weights = weights_hash(encoder)
        rows = [_similarity(file, vocabulary, weights) for file in spec.similarity]
        rows += [row for file in spec.analogies for row in _analogies(file, vocabulary, weights)]
        tests = [TestData(row.test, _fingerprint(row.test, spec), row.headline.n) for row in rows]
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0].id,
            settings={"vocabulary": len(vocabulary.rows)},
            checkpoint=str(spec.ckpt),
            weights=weights,
            data=Data(tests=tests),
            rows=rows,
            notes=[f"The vocabulary has {count(len(vocabulary.rows), 'word')}.", *_skipped(rows)],
            seconds=round(time.monotonic() - started_at, 1),
        )
        append_result(checkpoint.path.parent, result.to_json())
        return result


def word_vectors(spec: WordVectorSpec) -> Result:
    """Evaluate word vectors on files of similarities and analogies, as `sslkit word-vectors` does."""
    return WordVectorEvaluation().run(spec)


def _skipped(rows: list[Row]) -> list[str]:
    """Return a sentence for every row with lines that were skipped."""
    sentences = []
    for row in rows:
        skipped = row.metric("skipped")
        if skipped is not None and skipped.value:
            lines = count(int(skipped.value), "line")
            sentences.append(f"{row.test}: skipped {lines} with words that have no vector.")
    return sentences


def _fingerprint(test: str, spec: WordVectorSpec) -> str:
    """Return a hash of the file of a row."""
    file = next(file for file in [*spec.similarity, *spec.analogies] if test == file or test.startswith(f"{file}, "))
    return blake2b(Path(file).read_bytes(), digest_size=8).hexdigest()


def _row(test: str, weights: str, metric: Metric, skipped: int, comparisons: dict[str, Comparison]) -> Row:
    left_out = Metric("skipped", skipped, n=metric.n + skipped, unit_of_n="lines", higher_is_better=False, unit="count")
    return Row(CHECKPOINT, [metric, left_out], test=test, comparisons=comparisons, weights=weights)


def _similarity(file: str, vocabulary: Vocabulary, weights: str) -> Row:
    """Return the row of one file of word pairs."""
    known, vectors = vocabulary.rows, vocabulary.vectors
    cosines, ratings, skipped = [], [], 0
    for number, line in _lines(file, "similarity"):
        parts = [part for part in re.split(r"[\t,;]|\s+", line) if part]
        score = next((value for part in parts[2:] if (value := _number(part)) is not None), None)
        if score is None:
            if number == 1:  # a header
                continue
            raise SslkitError(f"line {number} of {file} is {line!r}", "two words and a number are expected", flag="similarity")
        first, second = parts[0].lower(), parts[1].lower()
        if first in known and second in known:
            cosines.append(float(vectors[known[first]] @ vectors[known[second]]))
            ratings.append(score)
        else:
            skipped += 1
    if len(cosines) < 3 or len(set(ratings)) < 2:
        raise SslkitError(
            f"{count(len(cosines), 'pair')} in {file} have vectors",
            "at least three with different ratings are needed",
            flag="similarity",
        )
    if len(set(cosines)) < 2:
        raise SslkitError(f"all pairs in {file} have the same cosine", "the vectors are untrained", flag="similarity")
    correlation = spearmanr(cosines, ratings)
    metric = Metric("Spearman", float(correlation.statistic), n=len(cosines), unit_of_n="pairs", unit="correlation")
    comparisons = {"no correlation": Comparison(float(correlation.pvalue), "test of Spearman's correlation")}
    return _row(file, weights, metric, skipped, comparisons)


def _number(text: str) -> float | None:
    """Return a text as a number; None if it is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _analogies(file: str, vocabulary: Vocabulary, weights: str) -> list[Row]:
    """Return a row for each section of one file of analogies, and one for all of them if there are several."""
    known = vocabulary.rows
    sections: dict[str, list[list[int]]] = {}
    skipped: dict[str, int] = {}
    section = Path(file).stem
    for number, line in _lines(file, "analogies"):
        if line.startswith(":"):
            section = line.removeprefix(":").strip()
            continue
        parts = line.lower().split()
        if len(parts) != 4:
            raise SslkitError(
                f"line {number} of {file} is {line!r}", "four words, or a section after a colon, are expected", flag="analogies"
            )
        questions = sections.setdefault(section, [])
        if all(part in known for part in parts):
            questions.append([known[part] for part in parts])
        else:
            skipped[section] = skipped.get(section, 0) + 1
    answerable = {name: questions for name, questions in sections.items() if questions}
    if not answerable:
        raise SslkitError(f"no question in {file} has vectors for all of its words", flag="analogies")
    correct = {name: _answer(torch.tensor(questions), vocabulary.vectors) for name, questions in answerable.items()}
    if len(sections) > 1:
        correct["all"] = torch.cat(list(correct.values()))
        skipped["all"] = sum(skipped.values())
    rows = []
    for name, hits in correct.items():
        low, high, method = interval_of_mean(hits)
        metric = Metric("accuracy", float(hits.mean()), low, high, method, n=len(hits), unit_of_n="questions")
        rows.append(_row(f"{file}, {name}", weights, metric, skipped.get(name, 0), {}))
    return rows


def _answer(questions: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    """Return 1 where questions `[N, 4]` are answered correctly (3CosAdd; Levy & Goldberg, 2014, equation 2), float64 `[N]`."""
    correct = []
    for chunk in questions.split(_CHUNK):
        a, b, c, d = chunk.unbind(1)
        scores = (vectors[b] - vectors[a] + vectors[c]) @ vectors.T
        scores.scatter_(1, chunk[:, :3], -torch.inf)
        correct.append(scores.argmax(dim=1) == d)
    return torch.cat(correct).double()


def _lines(file: str, flag: str) -> list[tuple[int, str]]:
    """Return the lines of a file that are neither blank nor comments, with their numbers."""
    lines = [(number, line.strip()) for number, line in read_lines(Path(file), flag)]
    content = [(number, line) for number, line in lines if not line.startswith("#")]
    if not content:
        raise SslkitError(f"{file} is empty", flag=flag)
    return content
