"""`sslkit word-vectors`: word vectors on similarities, analogies and translations, from files in the usual formats."""

import math
import re
import time
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Tensor

from sslkit.console import say_once
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Comparison, Data, Metric, Result, Row, TestData
from sslkit.data.tables import read_lines
from sslkit.engine.checkpoint import read_model
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import CHECKPOINT, weights_hash
from sslkit.evaluation.notes import count
from sslkit.evaluation.statistics import (
    Answers,
    compare_answers,
    compare_resamples,
    interval_of_mean,
    interval_of_resamples,
    resample_spearman,
    spearman,
)
from sslkit.text.specs import WordVectorSpec
from sslkit.text.translation import check_size, read_dictionary, same_spelling, translation_rows

_CHUNK = 256  # questions compared with all words at once
_TEST_SHARE = 0.2  # of the words of a dictionary, where none is named to test on


@dataclass(frozen=True)
class Vocabulary:
    """Words by row, and their unit vectors `[N, D]`; as many random ones are what these have to beat."""

    rows: dict[str, int]
    vectors: Tensor
    random: Tensor
    weights: str  # hash


class WordVectorEvaluation(Evaluation):
    """Evaluate word vectors on similarities and analogies, or by translating words."""

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
        Protocol(
            "word-vectors/translation-v1",
            "orthogonal map fitted on a dictionary, nearest words of the other language by CSLS; precision at 1",
            {},
        ),
    )

    def run(self, spec: WordVectorSpec) -> Result:
        """Evaluate word vectors on files of similarities and analogies.

        Similarities are lines of two words and a number, separated by tabs, commas or blanks (WordSim-353, MEN); other
        columns are ignored (SimLex-999 has the part of speech before the number). Analogies are lines of four words,
        sections begin with a colon (Mikolov et al., 2013a). Lines with words that have no vector are skipped and counted.
        With `--translate-to`, precision of the nearest words of another language instead. Raises SslkitError for other
        checkpoints, and for files without such lines.
        """
        started_at = time.monotonic()
        _check_files(spec)
        checkpoint = read_model(spec.ckpt, part=spec.part)
        encoder = checkpoint.build_encoder()
        vocabulary = _vocabulary(encoder, spec.ckpt, "ckpt")
        if spec.translate_to is not None:
            rows, data, notes = _translate(vocabulary, spec)
        else:
            rows = [row for file in spec.similarity for row in _similarity(file, vocabulary)]
            rows += [row for file in spec.analogies for row in _analogies(file, vocabulary)]
            trained = [row for row in rows if row.role == "checkpoint"]
            data = Data(tests=[TestData(row.test, _fingerprint(row.test, spec), row.headline.n) for row in trained])
            notes = _skipped(trained)
        result = Result(
            verb=self.verb,
            protocol=self.protocols[0 if spec.translate_to is None else 1].id,
            settings={"vocabulary": len(vocabulary.rows), **({} if spec.translate_to is None else {"seed": spec.seed})},
            checkpoint=str(spec.ckpt),
            weights=vocabulary.weights,
            data=data,
            rows=rows,
            notes=[f"The vocabulary has {count(len(vocabulary.rows), 'word')}.", *notes],
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def word_vectors(spec: WordVectorSpec) -> Result:
    """Evaluate word vectors on files of similarities and analogies, as `sslkit word-vectors` does."""
    return WordVectorEvaluation().run(spec)


def _check_files(spec: WordVectorSpec) -> None:
    """Raise SslkitError if nothing is evaluated, or two things at once."""
    benchmarks = bool(spec.similarity or spec.analogies)
    if spec.translate_to is None:
        if not benchmarks:
            raise SslkitError("no benchmark is named", "use --similarity FILE, --analogies FILE or --translate-to CHECKPOINT")
        for name in ("dictionary", "test_dictionary"):
            if getattr(spec, name) is not None:
                raise SslkitError("belongs to --translate-to", "name the vectors of the other language", flag=name)
    elif benchmarks:
        raise SslkitError("is a result of its own", "leave out --similarity and --analogies", flag="translate_to")
    elif spec.test_dictionary is not None and spec.dictionary is None:
        raise SslkitError("missing", "name the words to fit the map on, too", flag="dictionary")


def _vocabulary(encoder: Encoder, path: str, flag: str) -> Vocabulary:
    """Return the words of an encoder and their vectors; raises SslkitError if it has none."""
    table = encoder.vocabulary()
    if table is None:
        raise SslkitError(f"{path} has no word vectors", "expected a checkpoint of skipgram or cbow", flag=flag)
    random = torch.randn(table[1].shape, generator=torch.Generator().manual_seed(0))
    rows = {word: row for row, word in enumerate(table[0])}
    return Vocabulary(rows, F.normalize(table[1], dim=1), F.normalize(random, dim=1), weights_hash(encoder))


def _translate(source: Vocabulary, spec: WordVectorSpec) -> tuple[list[Row], Data, list[str]]:
    """Return rows, data and notes of a map onto the vectors of another language."""
    assert spec.translate_to is not None
    target = _vocabulary(read_model(spec.translate_to, "translate_to").build_encoder(), spec.translate_to, "translate_to")
    if source.weights == target.weights:
        raise SslkitError(f"{spec.translate_to} has the same vectors as the checkpoint", flag="translate_to")
    if source.vectors.shape[1] != target.vectors.shape[1]:
        problem = f"{spec.translate_to} has vectors of {target.vectors.shape[1]} numbers, the checkpoint of"
        raise SslkitError(f"{problem} {source.vectors.shape[1]}", "train both with one width", flag="translate_to")
    name = spec.dictionary or f"words spelled alike in {spec.translate_to}"
    train = same_spelling(source.rows, target.rows)
    if spec.dictionary is not None:
        train = read_dictionary(_lines(spec.dictionary, "dictionary"), spec.dictionary, source.rows, target.rows, "dictionary")
    tested, flag, notes = f"a fifth of {name}", "dictionary", list[str]()
    check_size(train, 2, name, flag)
    if spec.test_dictionary is None:
        train, test = train.hold_out(_TEST_SHARE, spec.seed)
    else:
        tested, flag = spec.test_dictionary, "test_dictionary"
        test = read_dictionary(_lines(tested, flag), tested, source.rows, target.rows, flag)
        kept = train.without(test.translations)
        if shared := len(train.translations) - len(kept.translations):
            notes.append(f"{count(shared, 'word')} of {tested} took no part in fitting.")
        train = kept
    say_once(f"test part: {tested}")
    check_size(test, 1, tested, flag)
    # With fewer pairs than dimensions, many maps fit equally well.
    check_size(train, source.vectors.shape[1], f"{name}, to fit on,", "dictionary")
    rows = translation_rows((source.vectors, target.vectors), source.random, (train, test), tested, source.weights)
    data = [TestData(tested, test.fingerprint(), len(test.translations))]
    notes = [f"The other vocabulary has {count(len(target.rows), 'word')}.", *notes, *_skipped(rows[:1])]
    return rows, Data(train.fingerprint(), data), notes


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


def _rows(
    test: str, weights: str, metrics: tuple[Metric, Metric], skipped: int, correlation: Comparison | None, paired: Comparison
) -> list[Row]:
    """Return the row of the checkpoint and, compared with it, that of random vectors."""
    n = metrics[0].n + skipped
    left_out = Metric("skipped", skipped, n=n, unit_of_n="lines", higher_is_better=False, unit="count")
    trained, random = ([metric, left_out] for metric in metrics)
    return [
        Row(
            CHECKPOINT, trained, test=test, comparisons={"no correlation": correlation} if correlation else {}, weights=weights
        ),
        Row("random vectors", random, test=test, comparisons={CHECKPOINT: paired}, role="random"),
    ]


def _similarity(file: str, vocabulary: Vocabulary) -> list[Row]:
    """Return the rows of one file of word pairs."""
    pairs, ratings, skipped = _read_pairs(file, vocabulary.rows)
    if len(pairs) < 3 or len(set(ratings)) < 2:
        raise SslkitError(
            f"{count(len(pairs), 'pair')} in {file} have vectors",
            "at least three with different ratings are needed",
            flag="similarity",
        )
    first, second = torch.tensor(pairs).unbind(1)
    cosines = [
        (vectors[first] * vectors[second]).sum(dim=1).double().numpy() for vectors in (vocabulary.vectors, vocabulary.random)
    ]
    if len(set(cosines[0].tolist())) < 2:
        raise SslkitError(f"all pairs in {file} have the same cosine", "the vectors are untrained", flag="similarity")
    ranked = np.array(ratings)
    resampled = [resample_spearman(values, ranked) for values in cosines]
    metrics = [
        Metric(
            "Spearman",
            spearman(values, ranked),
            *interval_of_resamples(some),
            n=len(ratings),
            unit_of_n="pairs",
            unit="correlation",
        )
        for values, some in zip(cosines, resampled, strict=True)
    ]
    paired = compare_resamples(resampled[1], resampled[0], metrics[1].value - metrics[0].value)
    correlation = Comparison(float(spearmanr(cosines[0], ratings).pvalue), "test of Spearman's correlation")
    return _rows(file, vocabulary.weights, (metrics[0], metrics[1]), skipped, correlation, paired)


def _read_pairs(file: str, known: dict[str, int]) -> tuple[list[tuple[int, int]], list[float], int]:
    """Return rows of the words of each pair, their ratings, and how many pairs have a word without a vector."""
    pairs, ratings, skipped = [], [], 0
    for number, line in _lines(file, "similarity"):
        parts = [part for part in re.split(r"[\t,;]|\s+", line) if part]
        score = next((value for part in parts[2:] if (value := _number(part)) is not None), None)
        if score is None:
            if number == 1 and not any(part.lower() in _NO_NUMBERS for part in parts):  # a header
                continue
            raise SslkitError(f"line {number} of {file} is {line!r}", "two words and a number are expected", flag="similarity")
        first, second = parts[0].lower(), parts[1].lower()
        if first in known and second in known:
            pairs.append((known[first], known[second]))
            ratings.append(score)
        else:
            skipped += 1
    return pairs, ratings, skipped


_NO_NUMBERS = ("nan", "inf", "-inf", "infinity")


def _number(text: str) -> float | None:
    """Return a text as a number; None if it is not a finite number."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _analogies(file: str, vocabulary: Vocabulary) -> list[Row]:
    """Return rows for each section of one file of analogies, and for all of them if there are several."""
    sections, skipped = _read_analogies(file, vocabulary.rows)
    answerable = {name: questions for name, questions in sections.items() if questions}
    if not answerable:
        raise SslkitError(f"no question in {file} has vectors for all of its words", flag="analogies")
    correct = {
        name: [_answer(torch.tensor(questions), vectors) for vectors in (vocabulary.vectors, vocabulary.random)]
        for name, questions in answerable.items()
    }
    if len(sections) > 1:
        correct["all"] = [torch.cat(hits) for hits in zip(*correct.values(), strict=True)]
        skipped["all"] = sum(skipped.values())
    rows = []
    for name, (trained, random) in correct.items():
        metrics = [
            Metric("accuracy", float(hits.mean()), *interval_of_mean(hits), n=len(hits), unit_of_n="questions")
            for hits in (trained, random)
        ]
        questions = np.arange(len(trained))
        paired = compare_answers(Answers(questions, random), Answers(questions, trained))
        rows += _rows(f"{file}, {name}", vocabulary.weights, (metrics[0], metrics[1]), skipped.get(name, 0), None, paired)
    return rows


def _read_analogies(file: str, known: dict[str, int]) -> tuple[dict[str, list[list[int]]], dict[str, int]]:
    """Return the questions of each section as rows of words, and how many others have a word without a vector."""
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
    return sections, skipped


def _answer(questions: Tensor, vectors: Tensor) -> Tensor:
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
