"""`sslkit prompt`: classify texts by what a language model puts into a pattern, with few labels or none."""

import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, UnreadableSampleError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Fit, Result, Role, Row, TestData
from sslkit.data.index import Index
from sslkit.engine.checkpoint import read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.metrics import mean_correct, score
from sslkit.evaluation.models import CHECKPOINT, RANDOM, weights_hash
from sslkit.evaluation.notes import write_notes
from sslkit.evaluation.references import reference_rows
from sslkit.evaluation.splits import Parts, find_labeled, labeled_fingerprint
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers
from sslkit.text.answers import MASKED, Gap, Kind, encode_answer, score_continuations, score_pieces, single_piece
from sslkit.text.language_model import LanguageModel, predicted_tokens, randomize, read_language_model
from sslkit.text.source import read_texts
from sslkit.text.specs import PromptSpec
from sslkit.text.tokenizer import Ids, Tokenizer

_TEXT = "{}"
_EMPTY = "N/A"  # a text without content (Zhao et al., 2021, section 5)
_SHORTEST = 4  # tokens of a text that a pattern leaves room for


class Prompt(Evaluation):
    """Classify texts by the words that a language model puts into patterns, without training."""

    verb = "prompt"
    Options = PromptSpec
    modalities = ("text",)
    requires = ("tokens",)
    protocols = (
        Protocol(
            "prompt/mask-v1",
            "the class whose word is likeliest at the mask (Schick & Schütze, 2021), divided by its probability for N/A",
            {"shots": 0, "calibrate": True},
        ),
        Protocol(
            "prompt/next-v1",
            "the class whose word is likeliest, per byte, to follow (Brown et al., 2020), divided by its probability for N/A",
            {"shots": 0, "calibrate": True},
        ),
    )

    def run(self, spec: PromptSpec) -> Result:
        """Classify the test part of labeled texts by patterns; `--shots` texts of each class stand before as examples.

        Patterns hold `{}` for the text and `[MASK]` for the answer, which stands last for a causal model. Probabilities are
        averaged over patterns. Raises SslkitError for checkpoints without a language model's head, and for words that are
        not one piece of a masked model's tokenizer.
        """
        started_at = time.monotonic()
        checkpoint = read_model(spec.ckpt, part=spec.part)
        checkpoint.check_modality("text")
        spec.check_modality("text")
        if spec.sample_size("text") is not None:
            problem = f"the model reads {checkpoint.size} tokens, as in training"
            raise SslkitError(problem, "leave it out", flag="context")
        kind: Kind = "masked" if predicted_tokens(checkpoint) == "masked" else "next"
        model = read_language_model(spec.ckpt, spec.part, kind).to(choose_device(spec.device)[0])
        patterns = [_parse(pattern, kind) for pattern in spec.pattern]
        parts = find_labeled(spec, spec.test, checkpoint)
        words = _words(spec, parts.classes)
        models: list[tuple[str, Role, LanguageModel]] = [(CHECKPOINT, "checkpoint", model)]
        if spec.baselines:
            models.append((RANDOM, "random", randomize(model, spec.seed)))
        table = _Table(parts)
        for name, role, each in models:
            classifier = _Classifier(each, kind, patterns, words, _examples(spec, parts), spec.calibrate)
            table.add(name, role, weights_hash(each.encoder), [classifier.scores(part.index) for part in parts.tests], spec)
        rows = table.rows
        if spec.baselines:
            rows += reference_rows(
                "text", parts, spec.seed, (CHECKPOINT, [table.outcomes.last(number) for number in range(len(parts.tests))])
            )
        protocol = self.protocols[0 if kind == "masked" else 1]
        settings = {"shots": spec.shots, "calibrate": spec.calibrate}
        rows = adjust_comparisons(rows)
        tests = [
            TestData(part.name, labeled_fingerprint(part.index), len(part.index), seen_in_pretraining=part.seen_in_pretraining)
            for part in parts.tests
        ]
        data = Data(labeled_fingerprint(parts.train), tests)
        result = Result(
            verb=self.verb,
            protocol=protocol.id if settings == protocol.settings else None,
            settings={
                **settings,
                "pattern": spec.pattern,
                "verbalizer": dict(zip(parts.classes, words, strict=True)),
                "seed": spec.seed,
                **parts.annotations,
            },
            checkpoint=str(checkpoint.path),
            weights=rows[0].weights,
            data=data,
            rows=rows,
            notes=write_notes(rows, data),
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def prompt(spec: PromptSpec) -> Result:
    """Classify texts by the words that a language model puts into patterns, as `sslkit prompt` does."""
    return Prompt().run(spec)


@dataclass(frozen=True)
class Pattern:
    """What stands before, between and after text and answer; a blank before one of them belongs to it."""

    before: str
    between: str
    after: str
    answer_first: bool
    blank: str  # before the text

    def encode(self, tokenizer: Tokenizer, text: str) -> tuple[Ids, Ids, Ids, Ids]:
        """Return token ids of what stands before, between and after, and of the text."""
        first, between, after, ids = tokenizer.encode([self.before, self.between, self.after, self.blank + text])
        return first, between, after, ids


def _parse(pattern: str, kind: Kind) -> Pattern:
    """Return the pieces of a pattern; raises SslkitError if a text or an answer is missing."""
    if pattern.count(_TEXT) != 1 or pattern.count(MASKED) != 1:
        raise SslkitError(f"{pattern!r} should hold {_TEXT} and {MASKED} once each", flag="pattern")
    answer_first = pattern.index(MASKED) < pattern.index(_TEXT)
    first, second = (MASKED, _TEXT) if answer_first else (_TEXT, MASKED)
    before, _, rest = pattern.partition(first)
    between, _, after = rest.partition(second)
    if kind == "next" and (answer_first or after.strip(" .")):
        raise SslkitError(f"{pattern!r} goes on after {MASKED}", "a causal model needs the answer at the end", flag="pattern")
    blank = " " if (between if answer_first else before).endswith(" ") else ""
    return Pattern(before.removesuffix(" "), between.removesuffix(" "), after, answer_first, blank)


def _words(spec: PromptSpec, classes: tuple[str, ...]) -> list[str]:
    """Return the word of each class, by default its name; raises SslkitError for words of classes that the data lacks."""
    unknown = sorted(spec.verbalizer.keys() - set(classes))
    if unknown:
        raise SslkitError(f"there is no class {unknown[0]}", f"classes are {', '.join(classes)}", flag="verbalizer")
    return [spec.verbalizer.get(name, name) for name in classes]


def _examples(spec: PromptSpec, parts: Parts) -> list[tuple[str, int]]:
    """Return `--shots` training texts of each class with their classes, in an order of the seed."""
    assert parts.train.labels is not None
    random = np.random.default_rng(spec.seed)
    order = random.permutation(len(parts.train))
    chosen: list[tuple[str, int]] = []
    for place in range(len(parts.classes)):
        rows = [int(row) for row in order if parts.train.labels[row] == place][: spec.shots]
        if len(rows) < spec.shots:
            problem = f"class {parts.classes[place]} has {len(rows)} training texts"
            raise SslkitError(problem, f"use {len(rows)} or fewer", flag="shots")
        chosen += [(_text(parts.train, row), place) for row in rows]
    return [chosen[place] for place in random.permutation(len(chosen))]


def _text(index: Index, row: int) -> str:
    """Return a text, a pair as one; nothing of one that cannot be read."""
    try:
        return " ".join(read_texts(index, row))
    except UnreadableSampleError:
        return ""


@dataclass(frozen=True)
class _Classifier:
    """A language model with patterns, a word for each class, and examples."""

    model: LanguageModel
    kind: Kind
    patterns: list[Pattern]
    words: list[str]
    examples: list[tuple[str, int]]
    calibrate: bool

    def scores(self, index: Index) -> Tensor:
        """Return class probabilities `[N, classes]`, means over patterns."""
        texts = [_text(index, row) for row in range(len(index))]
        if "" in texts:
            say_once(f"{texts.count('')} texts of {index.source} are empty or cannot be read")
        return torch.stack([self._probabilities(pattern, texts) for pattern in self.patterns]).mean(dim=0)

    def _probabilities(self, pattern: Pattern, texts: list[str]) -> Tensor:
        scores = self._log_probabilities(pattern, [*texts, _EMPTY]).double()
        return (scores[:-1] - scores[-1:] if self.calibrate else scores[:-1]).softmax(dim=1)

    def _log_probabilities(self, pattern: Pattern, texts: list[str]) -> Tensor:
        tokenizer = self.model.tokenizer
        if self.kind == "masked":
            pieces = [single_piece(tokenizer, word, "verbalizer") for word in self.words]
            return score_pieces(self.model, [self._gap(pattern, text, 3) for text in texts])[:, pieces]
        answers = [encode_answer(tokenizer, word) for word in self.words]
        empty = next((word for word, ids in zip(self.words, answers, strict=True) if not len(ids)), None)
        if empty is not None:
            raise SslkitError(f"{empty!r} has no tokens", "use another word", flag="verbalizer")
        longest = max(map(len, answers))
        contexts = [self._gap(pattern, text, 1 + longest).before for text in texts]
        sizes = torch.tensor([max(1, len(word.encode())) for word in self.words])
        return score_continuations(self.model, contexts, answers) / sizes

    def _gap(self, pattern: Pattern, text: str, reserved: int) -> Gap:
        """Return a filled-in pattern that leaves room for so many tokens: examples first, of all texts the end is left out."""
        tokenizer, size = self.model.tokenizer, self.model.checkpoint.size
        first, between, after, ids = pattern.encode(tokenizer, text)
        fixed = len(first) + len(between) + len(after) + reserved
        prefix: list[Ids] = []
        if self.examples:
            share = (size - reserved) // (len(self.examples) + 1)
            prefix = [self._example(pattern, example, label, share) for example, label in self.examples]
            fixed += sum(map(len, prefix))
        room = size - fixed
        if room < _SHORTEST:
            raise SslkitError(
                f"{size} tokens leave {max(0, room)} for a text", "use a shorter pattern or fewer --shots", flag="pattern"
            )
        ids = ids[:room]
        if pattern.answer_first:
            return Gap(np.concatenate([*prefix, first]), np.concatenate([between, ids, after]))
        return Gap(np.concatenate([*prefix, first, ids, between]), after)

    def _example(self, pattern: Pattern, text: str, label: int, size: int) -> Ids:
        """Return a pattern with text and answer, `size` tokens at most."""
        tokenizer = self.model.tokenizer
        first, between, after, ids = pattern.encode(tokenizer, text)
        answer = encode_answer(tokenizer, self.words[label])
        after = np.concatenate([after, tokenizer.encode(["\n"])[0]])
        ids = ids[: max(0, size - len(first) - len(between) - len(answer) - len(after))]
        parts = [first, answer, between, ids, after] if pattern.answer_first else [first, ids, between, answer, after]
        return np.concatenate(parts)


class _Table:
    """Rows in the making: the checkpoint's answers are what the others' are compared with."""

    def __init__(self, parts: Parts) -> None:
        self.parts, self.rows = parts, list[Row]()
        self.outcomes = CheckpointOutcomes[Answers](compare_answers)

    def add(self, model: str, role: Role, weights: str, scores: list[Tensor], spec: PromptSpec) -> None:
        """Add the rows of a model: one for each test part."""
        for number, (part, values) in enumerate(zip(self.parts.tests, scores, strict=True)):
            assert part.index.labels is not None
            labels = torch.from_numpy(part.index.labels)
            metrics, by_class = score([values], labels, self.parts.classes)
            answered = Answers(np.arange(len(labels)), mean_correct([values], labels))
            comparisons = self.outcomes.compare(role, number, None, answered)
            row = Row(model, metrics, part.name, by_class=by_class, comparisons=comparisons, weights=weights, role=role)
            fits = [Fit(spec.seed, spec.shots * len(self.parts.classes))] if spec.shots else []
            self.rows.append(replace(row, fits=fits))
