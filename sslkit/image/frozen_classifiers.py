"""Classifiers fitted once on features of clean images, and what they say of images that are changed."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.result import Fit, Row, TestData
from sslkit.contract.task import Batch
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.engine.features import map_samples, read_views
from sslkit.engine.precision import Machine
from sslkit.evaluation.features import reader
from sslkit.evaluation.knn import Knn
from sslkit.evaluation.models import Model
from sslkit.evaluation.probe import Probe, fit_over_c
from sslkit.evaluation.session import EvaluationSession, FeatureReader, Predictor, SplitFeatures, TrainingView
from sslkit.evaluation.solvers import cross_entropy
from sslkit.evaluation.splits import TestPart, labeled_fingerprint
from sslkit.evaluation.statistics import count_duplicates
from sslkit.image.specs import RobustnessSpec

LABEL_SHARES = (1.0, 0.2, 0.05)  # that classifiers of baselines are fitted on
_FEWEST = 5  # labels of each class
_READ = 64  # samples read at once


@dataclass
class Table:
    """What a protocol of `robustness` measures."""

    rows: list[Row] = field(default_factory=list)
    tests: list[TestData] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


Change = Callable[[Tensor, list[int]], Tensor]  # images [B, C, S, S] and their rows -> images of the same shape


@dataclass(frozen=True)
class Classifier:
    """A model and what predicts from its features: fitted on all labels, and, of baselines, also on some of them."""

    model: Model
    reader: FeatureReader
    predictors: list[Predictor]
    shares: list[float]  # of the labels, that each predictor was fitted on
    fit: Fit
    hashes: NDArray[np.int64]  # of the training images

    @torch.no_grad()
    def predict(self, images: Tensor, machine: Machine) -> Tensor:
        """Return the class of each image `[B, C, S, S]` by each predictor, int64 `[P, B]` on the CPU."""
        read = reader(self.model.encoder, self.model.name, self.reader.layer, self.reader.pool)
        with machine.autocast():
            features = {name: values.float().cpu() for name, values in read(images).items()}
        return torch.stack([predictor.scores(features).argmax(dim=1) for predictor in self.predictors])

    def images(self, index: Index) -> Tensor:
        """Return images as this model sees them, `[N, C, S, S]` on its device."""
        return read_views(self.source(index), np.arange(len(index)), "image", self.model.encoder.device)

    def source(self, index: Index) -> IndexedSource:
        """Return test images as this model sees them, on the canvas of training images."""
        train = self.reader.training_source
        return train.for_evaluation(index, self.reader.session.spec, self.model.encoder, self.model.size, train)

    def complete(self, row: Row) -> Row:
        """Return a row of this model with its role, its weights and how it was fitted."""
        return replace(row, role=self.model.role, weights=self.model.weights, fits=[self.fit])

    def describe(self, part: TestPart, hashes: NDArray[np.int64]) -> TestData:
        """Return what has to be known of a test part, of which images with these hashes are used."""
        duplicates = count_duplicates(self.hashes, hashes)
        return TestData(part.name, labeled_fingerprint(part.index), len(hashes), duplicates, part.seen_in_pretraining)


def with_places(classifiers: Sequence[Classifier]) -> Iterator[tuple[Classifier, int]]:
    """Yield classifiers with the place of the first predictor of each, that of all labels, among those of all."""
    place = 0
    for classifier in classifiers:
        yield classifier, place
        place += len(classifier.predictors)


def choose_images(test: SplitFeatures, spec: RobustnessSpec) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return rows of a test part, in order: at most `--samples`, chosen by the seed, that can be read; and their hashes."""
    chosen = np.sort(np.random.default_rng(spec.seed).permutation(len(test.rows))[: spec.samples])
    return test.rows[chosen], test.hashes[chosen]


def check_readable(source: IndexedSource, flag: str) -> None:
    """Raise SslkitError, naming the flag, if a sample can't be read."""
    for start in range(0, len(source.index), _READ):
        _, broken = source.read(np.arange(start, min(start + _READ, len(source.index))))
        if broken:
            name = source.index.name(min(broken))
            raise SslkitError(f"{name} of {source.location} can't be read", "remove it, or mend it", flag=flag)


def fit_classifiers(session: EvaluationSession, spec: RobustnessSpec) -> list[Classifier]:
    """Return a classifier for each model, before any test image is read."""
    classifiers = []
    for model in session.models:
        feature_reader = session.reader(model, spec.layer)
        train = feature_reader.training()
        shares = [LABEL_SHARES[0]]
        if model.role in ("random", "baseline"):
            fewest = int(torch.bincount(train.labels, minlength=len(train.classes)).min())
            shares += [share for share in LABEL_SHARES[1:] if share * fewest >= _FEWEST]
        parts = [train if share == 1 else train.take(train.hold_out(share, spec.seed)[1]) for share in shares]
        predictors = [_fit(part, spec) for part in parts]
        fit = Fit(spec.seed, predictors[0].n_train, dict(predictors[0].chosen), dict(predictors[0].held_out))
        model.encoder.eval()
        classifiers.append(Classifier(model, feature_reader, predictors, shares, fit, train.hashes))
    return classifiers


def _fit(train: TrainingView, spec: RobustnessSpec) -> Predictor:
    if spec.classifier == "probe":
        return fit_over_c(train, spec.seed, Probe.find_protocol("probe/logreg-v1").settings, cross_entropy)
    settings: dict[str, Any] = Knn.find_protocol("knn/weighted-v1").settings
    return Knn().fit(train, {**settings, "k": min(settings["k"], len(train.labels))}, spec.seed)


def predict_changed(
    classifiers: Sequence[Classifier], index: Index, changes: Sequence[Change], machine: Machine, title: str
) -> NDArray[np.int64]:
    """Return the class of each image under each change by each predictor, `[changes, P, N]`, in the order of classifiers.

    Images are decoded once for all models of a size, and changed once for these. All must be readable.
    """
    answers, order = list[NDArray[np.int64]](), list[int]()
    batch_size = classifiers[0].reader.session.spec.batch_size
    numbered = sorted(enumerate(classifiers), key=lambda pair: (pair[1].model.size, pair[0]))
    sizes = len({classifier.model.size for classifier in classifiers})
    with show_progress(title, len(index) * sizes) as progress:
        for _, members in groupby(numbered, key=lambda pair: pair[1].model.size):
            group = list(members)
            source = group[0][1].source(index)

            def predict(batch: Batch, group: Any = group, source: Any = source) -> Tensor:
                images, rows = source.view(batch, "image"), batch["index"].tolist()
                predictions = []
                for change in changes:
                    changed = change(images, rows)
                    predictions.append(torch.cat([classifier.predict(changed, machine) for _, classifier in group]))
                progress.advance(len(images))
                return torch.stack(predictions).permute(2, 0, 1)  # [B, changes, P]

            answers.append(map_samples(predict, source, machine, batch_size).permute(1, 2, 0).numpy())
            order += [place for place, classifier in group for _ in classifier.predictors]
    stacked: NDArray[np.int64] = np.concatenate(answers, axis=1)[:, np.argsort(order, kind="stable")]
    return stacked
