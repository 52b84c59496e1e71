"""`sslkit tag`: parts of speech and entities, predicted for each word from an encoder's tokens."""

import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Fit, Result, Role, Row, TestData
from sslkit.engine.checkpoint import read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.comparing import CheckpointOutcomes
from sslkit.evaluation.findings import with_findings
from sslkit.evaluation.models import Model, compare_models
from sslkit.evaluation.notes import count
from sslkit.evaluation.positions import fit_positions, layer_reader, predict_positions
from sslkit.evaluation.protocols import part_setting
from sslkit.evaluation.splits import draw_held_out
from sslkit.evaluation.statistics import Totals, adjust_comparisons, compare_ratios
from sslkit.text.encoders.base import TokenEncoder
from sslkit.text.labeled_words import LABELED_WORDS, LabeledWords, find_labeled_words, read_labeled_words
from sslkit.text.specs import TagSpec
from sslkit.text.tag_scores import SENTENCES, most_frequent, score_entities, score_words
from sslkit.text.tag_training import WordClassifier
from sslkit.text.word_features import word_features

_TEST_SHARE = 0.2  # of the sentences, where there is no test part
# So many words need little regularization.
_SETTINGS: dict[str, Any] = {"c": [0.01, 0.1, 1.0], "iterations": 100, "held_out": 0.2, "words": 200_000, "layer": "last"}
_FINETUNED: dict[str, Any] = {"epochs": 5, "lr": 5e-4, "words": 200_000}
_MAJORITY = "most frequent label per word"


class Tag(Evaluation):
    """Predict a label for each word, such as its part of speech or entity, from frozen tokens."""

    verb = "tag"
    Options = TagSpec
    labels = "token"
    requires = ("tokens",)
    modalities = ("text",)
    protocols = (
        Protocol(
            "tag/words-v1",
            "logistic regression on the first token of each word; C chosen on a fifth of the sentences; accuracy over words",
            _SETTINGS,
        ),
        Protocol(
            "tag/entities-v1",
            "as tag/words-v1 on labels by IOB2; F1 of entities with the right words and type, counted as conlleval does",
            _SETTINGS,
        ),
        Protocol("tag/finetuned-words-v1", "as tag/words-v1, but encoder and a linear layer are trained together", _FINETUNED),
        Protocol(
            "tag/finetuned-entities-v1", "as tag/entities-v1, but encoder and a linear layer are trained together", _FINETUNED
        ),
    )

    def run(self, spec: TagSpec) -> Result:
        """Fit linear classifiers on the words of a training part and measure them on each test part once.

        Labels that mark entities are scored as entities, others by accuracy. Raises SslkitError for encoders without tokens
        of text, and for files that are malformed.
        """
        started_at = time.monotonic()
        spec.check_modality("text")
        if spec.pool != "auto":
            raise SslkitError("words are labeled one by one", "leave it out", flag="pool")
        for name in ("label_pattern", "group", "group_pattern"):
            if getattr(spec, name) is not None:
                raise SslkitError("files of labeled words have no paths or columns to match", "leave it out", flag=name)
        _check_training(spec)
        checkpoint = read_model(spec.ckpt, part=spec.part)
        checkpoint.check_modality("text")
        train, tests = _read_parts(spec)
        models = compare_models(checkpoint, spec, choose_device(spec.device)[0], 0)
        for model in models:
            if not isinstance(model.encoder, TokenEncoder) or "tokens" not in model.encoder.provides:
                flag = "ckpt" if model.role in ("checkpoint", "random") else "against"
                raise SslkitError(f"{model.name} has no tokens of text", "use a checkpoint of text", flag=flag)
            model.encoder.check_length(model.size)
        table = _Table(train, tests)
        for model in models:
            (_add_finetuned if spec.finetune else _add_rows)(table, model, spec)
        if spec.baselines:
            table.add(
                _MAJORITY, "baseline", None, [most_frequent(train, test) for test in tests], Fit(spec.seed, train.words), ""
            )
        protocol = self.protocols[(2 if spec.finetune else 0) + (1 if train.entities else 0)]
        named = {name: getattr(spec, name, None) for name in protocol.settings}
        settings = protocol.settings | {name: value for name, value in named.items() if value is not None}
        unchanged = settings == protocol.settings and not spec.sample_values()
        rows = adjust_comparisons(table.rows)
        result = Result(
            verb=self.verb,
            protocol=protocol.id if unchanged else None,
            settings={**settings, **part_setting(spec.part), "size": models[0].size, "seed": spec.seed, "label": spec.label},
            checkpoint=str(checkpoint.path),
            weights=rows[0].weights,
            data=Data(train.fingerprint(), [TestData(test.location, test.fingerprint(), test.words) for test in tests]),
            rows=rows,
            notes=_notes(train, tests, table),
            seconds=round(time.monotonic() - started_at, 1),
        )
        result = with_findings(result, checkpoint, spec, can_finetune=False)
        append_result(checkpoint.path.parent, result.to_json())
        return result


def tag(spec: TagSpec) -> Result:
    """Predict a label for each word from frozen tokens, as `sslkit tag` does."""
    return Tag().run(spec)


def _read_parts(spec: TagSpec) -> tuple[LabeledWords, list[LabeledWords]]:
    """Return the training part and the test parts; without any, a fifth of the sentences is held out by the seed."""
    if spec.data is None:
        raise SslkitError("missing", LABELED_WORDS, flag="data")
    parts = find_labeled_words(spec.data)
    train = read_labeled_words(parts["train"], spec.label)
    files = [(Path(test), "test") for test in spec.test] or [(file, "data") for part, file in parts.items() if part == "test"]
    tests = []
    for file, flag in files:
        test = read_labeled_words(file, spec.label, flag)
        if test.entities != train.entities:
            raise SslkitError(f"only one of {train.location} and {test.location} has entities", flag=flag)
        say_once(f"test part: {test.location}")
        tests.append(test)
    if not tests:
        if len(train.sentences) < 3:
            problem = f"{train.location} has {count(len(train.sentences), 'sentence')}"
            raise SslkitError(problem, "at least three are needed, to fit, choose and test on", flag="data")
        say_once(f"test part: a fifth of the sentences of {spec.data}, drawn by --seed {spec.seed}")
        chosen = draw_held_out(len(train.sentences), _TEST_SHARE, spec.seed)
        test = replace(train.subset(np.flatnonzero(chosen).tolist()), location=f"a fifth of {spec.data}")
        train, tests = train.subset(np.flatnonzero(~chosen).tolist()), [test]
    if len(train.sentences) < 2:
        raise SslkitError(f"{train.location} has one sentence", "at least two are needed", flag="data")
    if len(train.labels) < 2:
        raise SslkitError(f"{train.location} has only the label {train.labels[0]}", "at least two are needed", flag="data")
    return train, tests


def _limit_words(train: LabeledWords, spec: TagSpec) -> LabeledWords:
    """Return as many whole sentences, drawn by the seed, as have `--words` words."""
    if train.words <= spec.words:
        return train
    order = np.random.default_rng(spec.seed).permutation(len(train.sentences))
    sizes = np.cumsum([len(train.sentences[row][0]) for row in order])
    kept = max(2, int(np.searchsorted(sizes, spec.words, side="right")))
    return train.subset(sorted(order[:kept].tolist()))


def _check_training(spec: TagSpec) -> None:
    """Raise SslkitError for options that belong to a linear classifier of frozen tokens, or to fine-tuning, alone."""
    foreign = {"layer", "c"} if spec.finetune else {"epochs", "lr"}
    named = sorted(foreign & spec.model_fields_set)
    if named:
        hint = f"leave out {flag_name(named[0])} or --finetune" if spec.finetune else "add --finetune"
        raise SslkitError("belongs to frozen tokens" if spec.finetune else "belongs to --finetune", hint, flag=named[0])


def _add_finetuned(table: "_Table", model: Model, spec: TagSpec) -> None:
    """Add one model's rows: its encoder is trained before a test part is read by it."""
    encoder, weights, data = model.encoder, model.weights, _limit_words(table.train, spec)
    assert isinstance(encoder, TokenEncoder)
    seed_stage(spec.seed, "head", 0)
    classifier = WordClassifier(encoder, table.train.labels, model.size)
    classifier.train(data, spec)
    predictions = [classifier.predict(test) for test in table.tests]
    table.add(model.name, model.role, None, predictions, Fit(spec.seed, data.words), weights)


def _add_rows(table: "_Table", model: Model, spec: TagSpec) -> None:
    """Add one model's rows: everything is fitted before a test part is read by it."""
    encoder, fitted_on = model.encoder, _limit_words(table.train, spec)
    assert isinstance(encoder, TokenEncoder)
    read = layer_reader(encoder, model.name, spec.layer)
    classes = table.train.labels
    layers = word_features(encoder, fitted_on, model.size, read)
    labels = [label for _, labels in fitted_on.sentences for label in labels]
    sentence = np.repeat(np.arange(len(fitted_on.sentences)), [len(words) for words, _ in fitted_on.sentences])
    settings = _SETTINGS if spec.c is None else {**_SETTINGS, "c": spec.c}
    predictors = fit_positions(layers, labels, sentence, classes, encoder.device, spec.seed, settings, spec.layer)
    predictions: dict[str, list[list[list[str]]]] = {name: [] for name in predictors}
    for test in table.tests:
        layers = word_features(encoder, test, model.size, read)
        for name, predicted in predict_positions(predictors, layers, classes).items():
            words = iter(predicted)
            predictions[name].append([[next(words) for _ in sentence] for sentence, _ in test.sentences])
    for name, predictor in predictors.items():
        fitted = Fit(spec.seed, predictor.n_train, dict(predictor.chosen), dict(predictor.held_out))
        table.add(model.name, model.role, None if spec.layer == "last" else name, predictions[name], fitted, model.weights)


class _Table:
    """Rows in the making: the checkpoint's predictions are what the others' are compared with."""

    def __init__(self, train: LabeledWords, tests: list[LabeledWords]) -> None:
        self.train, self.tests, self.rows = train, tests, list[Row]()
        self.training_words = {word.lower() for words, _ in train.sentences for word in words}
        self._outcomes = CheckpointOutcomes[Totals](partial(compare_ratios, unit=SENTENCES))

    def add(
        self, model: str, role: Role, layer: str | None, predictions: list[list[list[str]]], fit: Fit, weights: str
    ) -> None:
        """Add the rows of a model and layer: one for each test part."""
        for number, (test, predicted) in enumerate(zip(self.tests, predictions, strict=True)):
            score = score_entities(test, predicted) if test.entities else score_words(test, predicted, self.training_words)
            comparisons = self._outcomes.compare(role, number, layer, score.totals)
            row = Row(model, score.metrics, test.location, layer=layer, by_class=score.by_class, comparisons=comparisons)
            self.rows.append(replace(row, weights=weights, fits=[fit], role=role))


def _notes(train: LabeledWords, tests: list[LabeledWords], table: _Table) -> list[str]:
    """Return what was fitted and tested on."""
    fitted = table.rows[0].n_train
    notes = [f"Fitted on {count(fitted, 'word')}" + (f" of {train.words:,}" if fitted < train.words else "") + "."]
    for test in tests:
        unseen = sum(word.lower() not in table.training_words for words, _ in test.sentences for word in words)
        size = f"{count(len(test.sentences), 'sentence')}, {count(test.words, 'word')}"
        notes.append(f"{test.location}: {size}, {unseen / test.words:.1%} of them not in the training part.")
        foreign = sorted(set(test.labels) - set(train.labels))
        if foreign:
            wrong = sum(label in foreign for _, labels in test.sentences for label in labels)
            names = ", ".join(foreign[:5])
            notes.append(f"Wrong in any case: {count(wrong, 'word')} with a label that training lacks ({names}).")
    return notes
