"""Fit on the training part, look at each test part once, and say what came of it: for every model that is compared.

What is fitted never sees a test part: `Fit` gets training features only and returns what predicts.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.run_folder import append_result
from sslkit.evaluation.features import cached
from sslkit.evaluation.metrics import classification, right
from sslkit.evaluation.models import CHECKPOINT, RANDOM, Model, compared
from sslkit.evaluation.protocols import PROTOCOLS
from sslkit.evaluation.splits import Parts, find_labeled, source_of
from sslkit.evaluation.statistics import Told, count_duplicates, interval, mcnemar_of_rows
from sslkit.specs.evaluation import EvaluationSpec

Layers = dict[str, Tensor]  # features by layer, [N, width]


@dataclass(frozen=True)
class Fitted:
    """Hold what was fitted: class scores `[M, classes]` of a test part's features, and what was chosen on the way."""

    predict: Callable[[Layers], Tensor]
    chosen: dict[str, Any]
    n_train: int


Fit = Callable[[Layers, Tensor, int], Fitted]  # training features, labels [N], seed


@dataclass(frozen=True)
class Row:
    """Hold one line of a result's table; accuracies are shares of 1.

    `p_value` says how likely two equally good models would differ so much from each other on these images: this one and
    the checkpoint (McNemar's test; with several seeds, of the first).
    """

    model: str
    test: str
    layer: str | None
    top1: float
    top1_interval: tuple[float, float]
    top1_deviation: float | None  # between seeds
    top5: float | None
    macro_f1: float | None
    balanced_accuracy: float | None
    mean_average_precision: float | None  # of several labels per image
    per_class: dict[str, float | None]
    p_value: float | None
    n_train: int
    n_test: int
    duplicates: int  # test images that are in the training part, too
    test_seen_in_pretraining: bool
    chosen: list[dict[str, Any]]  # by seed
    weights: str


@dataclass(frozen=True)
class Result:
    """Hold what `knn`, `probe` and `finetune --json` print: the checkpoint's first row, and all rows."""

    command: str
    protocol: str | None
    settings: dict[str, Any]
    checkpoint: str
    weights: str
    data: dict[str, str | list[str]]  # hashes of images and labels, of each part
    top1: float
    n_train: int
    n_test: int
    duplicates: int
    test_seen_in_pretraining: bool
    rows: list[Row]


@dataclass(frozen=True)
class Part:
    """Hold features and labels `[N]` of a part of the data."""

    layers: Layers
    labels: Tensor
    rows: NDArray[np.int64]  # places in the data: what cannot be read is missing
    hashes: NDArray[np.int64]


@dataclass(frozen=True)
class Evaluation:
    """Hold what is compared, and the data it is compared on."""

    spec: EvaluationSpec
    checkpoint: Checkpoint
    models: list[Model]
    parts: Parts

    def features(self, model: Model, layer: str) -> tuple[Part, list[Part]]:
        """Return the training part and the test parts as a model sees them; `layer` as in `--layer`.

        What is compared with the checkpoint and has no layers, or no class token, is taken as it is.
        """
        pool, own = self.spec.pool, model.name in (CHECKPOINT, RANDOM)
        if not own and "layers" not in model.encoder.offers:
            layer, pool = "last", "auto"
        elif not own and not model.encoder.class_token and pool in ("class", "both"):
            pool = "auto"
        source_class = source_of(self.checkpoint)

        def shown(index: Index, like: IndexedSource | None = None) -> IndexedSource:
            return source_class.for_evaluation(index, self.spec, model.encoder, model.size, like)

        def part(samples: IndexedSource) -> Part:
            found, labels = cached(model, samples, layer, pool, self.spec), samples.index.labels
            assert labels is not None
            return Part(found.layers, torch.from_numpy(labels[found.rows]), found.rows, found.hashes)

        train = shown(self.parts.train)
        return part(train), [part(shown(test.index, like=train)) for test in self.parts.tests]

    def result(self, command: str, protocol: str | None, settings: dict[str, Any], rows: list[Row]) -> Result:
        """Return the result with its first row's numbers on top, added to the run's results.jsonl if there is a run."""
        result = Result(
            command=command,
            protocol=protocol,
            settings=self.described(settings),
            checkpoint=str(self.checkpoint.path),
            data=self.parts.hashes(),
            **headed(rows),
        )
        self.record(asdict(result))
        return result

    def described(self, settings: dict[str, Any]) -> dict[str, Any]:
        """Return settings with what else decides the numbers: image size, seed, and which labels were told."""
        return {**settings, "size": self.models[0].size, "seed": self.spec.seed, "label": self.parts.label}

    def record(self, result: dict[str, Any]) -> None:
        """Add a result to the run's results.jsonl; nothing where there is no run."""
        append_result(self.checkpoint.path.parent, result)


def headed(rows: list[Row]) -> dict[str, Any]:
    """Return what a Result says of its rows: the first one's numbers, and all of them."""
    names = ("weights", "top1", "n_train", "n_test", "duplicates", "test_seen_in_pretraining")
    return {**{name: getattr(rows[0], name) for name in names}, "rows": rows}


def open_evaluation(spec: EvaluationSpec, pixels: int = 32) -> Evaluation:
    """Read checkpoint and data for an evaluation; raises SslkitError for anything that is missing or does not fit.

    Raw pixels, for comparison, are those of images shrunk to `pixels`.
    """
    checkpoint = read_model(spec.ckpt)
    source_of(checkpoint)
    device, _ = choose_device(spec.device)
    models = compared(checkpoint, spec, device, pixels)
    return Evaluation(spec, checkpoint, models, find_labeled(spec, spec.test, checkpoint))


def settle(spec: EvaluationSpec, protocol: str) -> tuple[str | None, dict[str, Any]]:
    """Return the protocol's id and settings, with the values given by hand, which make the id None."""
    settings = {"layer": "last", "pool": "auto", **PROTOCOLS[protocol].settings}
    own = type(spec).model_fields.keys() - EvaluationSpec.model_fields.keys() - {"protocol"}
    given = {name: value for name in own if (value := getattr(spec, name)) is not None}
    foreign = sorted(given.keys() - settings.keys())
    if foreign:
        raise SslkitError(f"{protocol} has no such setting", "see `sslkit protocols`", flag=foreign[0])
    given |= {name: getattr(spec, name) for name in ("layer", "pool") if name in spec.model_fields_set} | spec.data_values()
    several = settings.get("seeds", 1) > 1  # else more seeds are more of the same
    by_hand = [name for name in given if given[name] != settings.get(name, "auto") or name in own]
    by_hand = [name for name in by_hand if name != "seeds" or several]
    return None if by_hand else protocol, {**settings, **given}


def classify(evaluation: Evaluation, fit: Fit, settings: dict[str, Any], together: bool = False) -> list[Row]:
    """Return a row for each model, layer and test part, from as many fits as the settings have seeds, counted from `--seed`.

    With `together`, one fit gets all layers at once instead of a fit for each.
    """
    rows: list[Row] = []
    own: dict[str, dict[str | None, Told]] = {}  # the checkpoint's, by test part and layer
    for model in evaluation.models:
        train, tests = evaluation.features(model, settings["layer"])
        for name in [None] if together else list(train.layers):
            seen = train.layers if name is None else {name: train.layers[name]}
            fits = [fit(seen, train.labels, evaluation.spec.seed + number) for number in range(settings["seeds"])]
            for part, test in zip(evaluation.parts.tests, tests, strict=True):
                shown = test.layers if name is None else {name: test.layers[name]}
                scores = [fitted.predict(shown) for fitted in fits]
                told = test.rows, right(scores[0], test.labels)
                if model.name == CHECKPOINT:
                    own.setdefault(part.name, {})[name] = told
                beside = own[part.name]
                same = beside.get(name) if len(beside) > 1 else next(iter(beside.values()))
                rows.append(
                    Row(
                        model=model.name,
                        test=part.name,
                        layer=name,
                        **score(scores, test.labels, evaluation.parts.classes),
                        p_value=None if same is None or model.name == CHECKPOINT else mcnemar_of_rows(told, same),
                        n_train=fits[0].n_train,
                        n_test=len(test.labels),
                        duplicates=count_duplicates(train.hashes, test.hashes),
                        test_seen_in_pretraining=part.seen_in_pretraining,
                        chosen=[fitted.chosen for fitted in fits],
                        weights=model.weights,
                    )
                )
    return rows


def score(scores: list[Tensor], labels: Tensor, classes: tuple[str, ...]) -> dict[str, Any]:
    """Return what a Row says of class scores `[M, classes]`, one of each seed: means, an interval, the seeds' deviation."""
    each = [classification(one, labels, classes) for one in scores]
    low, high = interval(torch.stack([right(one, labels) for one in scores]).mean(dim=0))
    names = ("top1", "top5", "macro_f1", "balanced_accuracy", "mean_average_precision")
    means: dict[str, Any] = {name: _mean([getattr(one, name) for one in each]) for name in names}
    return {
        **means,
        "top1_interval": (low, high),
        "top1_deviation": float(np.std([one.top1 for one in each], ddof=1)) if len(each) > 1 else None,
        "per_class": {name: _mean([one.per_class[name] for one in each]) for name in classes},
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
