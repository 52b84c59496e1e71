"""`sslkit ladder`: what few labels are worth, by what is trained with them and with the unlabeled samples beside them."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Evaluation, Protocol
from sslkit.contract.result import Data, Fit, Result, Role, Row, TestData, Training
from sslkit.data.locations import find_parts
from sslkit.encoders.build import check_requirements
from sslkit.encoders.recipe import encoder_name
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.classifier import read_classifier
from sslkit.engine.features import Features
from sslkit.engine.precision import choose_device
from sslkit.engine.pretrain import PretrainResult, pretrain
from sslkit.engine.run_folder import MODEL, append_result
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.finetune import checkpoint_size, finetune
from sslkit.evaluation.metrics import mean_correct, score
from sslkit.evaluation.models import Model
from sslkit.evaluation.notes import count, join_names
from sslkit.evaluation.probe import Probe, fit_over_c
from sslkit.evaluation.session import TrainingView
from sslkit.evaluation.solvers import cross_entropy
from sslkit.evaluation.splits import Parts, find_labeled, held_out_rows, labeled_fingerprint, source_of
from sslkit.evaluation.statistics import Answers, adjust_comparisons, compare_answers, count_duplicates
from sslkit.registry import TASKS, load_modality, names
from sslkit.specs.evaluation import LadderSpec
from sslkit.specs.train import FinetuneSpec, PretrainSpec
from sslkit.tasks.load import load_task

SUPERVISED, PROBE, FINE_TUNED, JOINT, DISTILLED = "supervised only", "probe", "fine-tuned", "joint", "distilled"
_FEWEST = 3  # labels of a class from which C is chosen on held-out ones
_C = 0.1  # with fewer
_MACHINE = ("device", "workers", "cache", "cache_limit", "reindex")


class Ladder(Evaluation):
    """Compare training with few labels: supervised only, probe, fine-tuned, jointly with the pretext task, distilled."""

    verb = "ladder"
    Options = LadderSpec
    panel = "Train"
    modalities = ("image",)
    in_all = False
    protocols = (
        Protocol(
            "ladder/fewlabel-v1",
            "1% and 10% of each class's labels, 3 draws; every training takes 1,000 steps of 64 samples at most",
            {"shares": [0.01, 0.1], "seeds": 3, "steps": 1000, "batch_size": 64},
        ),
    )

    def run(self, spec: LadderSpec) -> Result:
        """Train and test every rung for each share and draw of the labels; rows are compared with supervised training alone.

        Raises SslkitError without a test part: training may see every sample of `--data`.
        """
        started_at = time.monotonic()
        out = _choose_out(spec)
        checkpoint = read_model(spec.ckpt)
        parts = find_labeled(spec, spec.test, checkpoint)
        if not spec.test and len(find_parts(parts.data, source_of(checkpoint).kind)) == 1:
            raise SslkitError("missing", "a ladder is tested on data of its own, not on a part of --data", flag="test")
        trials = _Trials(spec, checkpoint, parts, out)
        rows = adjust_comparisons([row for share in spec.shares for row in trials.rows(share)])
        tests = [TestData(part.name, labeled_fingerprint(part.index), len(part.index)) for part in parts.tests]
        tests = [replace(test, duplicates=number) for test, number in zip(tests, trials.duplicates(), strict=True)]
        data = Data(labeled_fingerprint(parts.train), tests)
        settings = {"shares": spec.shares, "seeds": spec.seeds, "steps": spec.steps, "batch_size": spec.batch_size}
        protocol = self.protocols[0]
        result = Result(
            verb=self.verb,
            protocol=protocol.id if settings == protocol.settings else None,
            settings={**settings, "task": trials.task, "seed": spec.seed, "size": trials.model.size, **parts.annotations},
            checkpoint=str(checkpoint.path),
            weights=trials.model.weights,
            data=data,
            rows=rows,
            notes=[*_compare(rows), *trials.notes, f"{join_names([count(test.n, 'test sample') for test in tests])}."],
            seconds=round(time.monotonic() - started_at, 1),
        )
        append_result(checkpoint.path.parent, result.to_json())
        return result


def ladder(spec: LadderSpec) -> Result:
    """Compare what is trained with few labels, as `sslkit ladder` does."""
    return Ladder().run(spec)


@dataclass(frozen=True)
class _Tested:
    """One rung of one draw: class scores `[M, classes]` and rows of each test part."""

    fit: Fit
    weights: str
    scores: list[Tensor]
    features: list[Features]


class _Trials:
    """The trainings of a ladder, and what they share."""

    def __init__(self, spec: LadderSpec, checkpoint: Checkpoint, parts: Parts, out: Path) -> None:
        self.spec, self.checkpoint, self.parts, self.out = spec, checkpoint, parts, out
        recipe = checkpoint.recipe
        if "name" not in recipe:
            raise SslkitError(f"no task trains {encoder_name(recipe)} from labels", "a plain encoder is needed", flag="ckpt")
        self.device = choose_device(spec.device)[0]
        self.model = Model(str(spec.ckpt), checkpoint.build_encoder(spec.encoder).to(self.device), checkpoint.size)
        self.source = source_of(checkpoint)
        self.train = self._features(self.model, None)
        self.tests = [self._features(self.model, place) for place in range(len(parts.tests))]
        data = {"data": parts.data, **parts.annotations, **parts.recorded, **checkpoint_size(checkpoint)}
        options = {name: str(value) for name, value in recipe["options"].items()}
        self.data = data | {name: getattr(spec, name) for name in _MACHINE} | {"steps": spec.steps, "resume": spec.resume}
        self.encoder = {"encoder": recipe["name"], "encoder_option": options}
        self.task, self.notes = self._choose_task()

    def duplicates(self) -> list[int]:
        """Return how many samples of each test part also occur in the training part."""
        return [count_duplicates(self.train.hashes, test.hashes) for test in self.tests]

    def rows(self, share: float) -> Iterator[Row]:
        """Train all rungs with a share of the labels, once for each draw, and return a row for each and each test part."""
        by_rung: dict[str, list[_Tested]] = {}
        for seed in range(self.spec.seed, self.spec.seed + self.spec.seeds):
            for rung, tested in self._climb(share, seed):
                by_rung.setdefault(rung, []).append(tested)
        for rung, of_draws in by_rung.items():
            for place, part in enumerate(self.parts.tests):
                supervised = self._answers(by_rung[SUPERVISED], place)
                labels = self._labels(of_draws[0].features[place], place)
                metrics, by_class = score([tested.scores[place] for tested in of_draws], labels, self.parts.classes)
                difference = compare_answers(self._answers(of_draws, place), supervised)
                role: Role = "random" if rung == SUPERVISED else "checkpoint"
                yield Row(
                    _name(rung, share),
                    metrics,
                    part.name,
                    by_class=by_class,
                    comparisons={} if rung == SUPERVISED else {_name(SUPERVISED, share): difference},
                    weights=of_draws[0].weights,
                    fits=[tested.fit for tested in of_draws],
                    role=role,
                )

    def _climb(self, share: float, seed: int) -> Iterator[tuple[str, _Tested]]:
        """Train and test every rung with one draw of the labels."""
        folder = self.out / f"share-{100 * share:g}-seed-{seed}"
        chosen = held_out_rows(self.parts.train.labels, seed, self.parts.classes, share)[1] if share < 1 else None
        labeled = len(self.parts.train) if chosen is None else len(chosen)
        say(f"{100 * share:g}% of the labels ({labeled:,}), seed {seed}", style="bold")
        yield PROBE, self._probe(chosen, labeled, seed)
        common = {**self.data, "seed": seed}
        batch = {"batch_size": self.spec.batch_size}
        few = {"batch_size": min(self.spec.batch_size, labeled)}
        tuned = folder / FINE_TUNED
        start: dict[str, Any] = {"ckpt": str(self.checkpoint.path), "scratch": False, "shares": [share], "test": self.spec.test}
        result = finetune(FinetuneSpec(**{**common, **few, **start, "out": str(tuned)}))
        yield FINE_TUNED, self._test(tuned, replace(result.rows[0].fits[0], n_train=labeled))
        teacher = {"teacher": str(tuned / MODEL)}
        labels = {"label_share": share, "all_labels": True}
        yield DISTILLED, self._pretrain(folder / DISTILLED, labeled, {**common, **batch, "task": "distill", "options": teacher})
        if self.task is not None:
            settings = {**common, **batch, **labels, "task": f"{self.task}+supervised"}
            yield JOINT, self._pretrain(folder / JOINT, labeled, settings)
        settings = {**common, **few, **labels, "task": "supervised"}
        yield SUPERVISED, self._pretrain(folder / SUPERVISED.replace(" ", "-"), labeled, settings)

    def _pretrain(self, out: Path, labeled: int, settings: dict[str, Any]) -> _Tested:
        """Train a task that ends with a classifier, from random weights, and test it."""
        say(f"{out.name}: {settings['task']}", style="bold")
        annotations = self.parts.annotations if "label_share" in settings else dict.fromkeys(self.parts.annotations)
        run = pretrain(PretrainSpec(**{**settings, **self.encoder, **annotations, "out": str(out)}))
        return self._test(out, _fit(run, settings["seed"], labeled, settings.get("label_share", 1.0)))

    def _probe(self, chosen: Any, labeled: int, seed: int) -> _Tested:
        """Fit a probe to the checkpoint's features of the labeled samples, and test it."""
        rows = self.train.rows
        places = np.flatnonzero(np.isin(rows, chosen)) if chosen is not None else np.arange(len(rows))
        assert self.parts.train.labels is not None
        labels = torch.from_numpy(self.parts.train.labels[rows[places]])
        layers = {name: values[places] for name, values in self.train.layers.items()}
        groups = self.parts.train.groups
        view = TrainingView(
            layers,
            labels,
            rows[places],
            self.train.hashes[places],
            self.parts.classes,
            self.device,
            None if groups is None else groups[rows[places]],
        )
        settings = Probe.protocols[0].settings
        if labels.bincount(minlength=len(self.parts.classes)).min() < _FEWEST:
            settings = {**settings, "c": _C}
        predictor = fit_over_c(view, seed, settings, cross_entropy)
        fit = Fit(seed, labeled, dict(predictor.chosen), dict(predictor.held_out))
        return _Tested(fit, self.model.weights, [predictor.scores(test.layers) for test in self.tests], self.tests)

    def _test(self, run: Path, fit: Fit) -> _Tested:
        """Return the class scores of the classifier that a run keeps."""
        checkpoint = read_model(run / MODEL)
        classifier = read_classifier(checkpoint)
        encoder = checkpoint.build_encoder(self.spec.encoder).to(self.device)
        model = Model(str(run), encoder, checkpoint.size)
        order = [classifier.classes.index(name) for name in self.parts.classes]
        features = [self._features(model, place) for place in range(len(self.parts.tests))]
        with torch.no_grad():
            scores = [classifier.head(test.layers["last"])[:, order] for test in features]
        return _Tested(fit, model.weights, scores, features)

    def _features(self, model: Model, place: int | None) -> Features:
        """Return a model's features of a test part, or of the training part."""
        index = self.parts.train if place is None else self.parts.tests[place].index
        samples = self.source.for_evaluation(index, self.spec, model.encoder, model.size)
        return cached_features(model, samples, "last", "auto", self.spec)

    def _answers(self, of_draws: list[_Tested], place: int) -> Answers:
        features = of_draws[0].features[place]
        return Answers(
            features.rows, mean_correct([tested.scores[place] for tested in of_draws], self._labels(features, place))
        )

    def _labels(self, features: Features, place: int) -> Tensor:
        labels = self.parts.tests[place].index.labels
        assert labels is not None
        return torch.from_numpy(labels[features.rows])

    def _choose_task(self) -> tuple[str | None, list[str]]:
        """Return the pretext task to train jointly with labels, the checkpoint's by default, or None and the reason."""
        name = self.spec.task or str(self.checkpoint.metadata["task"])
        if self.spec.task is not None:
            if _needs_options(name):
                raise SslkitError(f"{name} needs options of its own", "choose another pretext task", flag="task")
            joint = load_task(f"{name}+supervised")  # raises an error if they cannot be trained together
            check_requirements(
                self.model.encoder, encoder_name(self.checkpoint.recipe), joint.requires, name, load_modality("image")
            )
            return name, []
        if name not in names(TASKS) or "label" in load_task(name).needs or _needs_options(name):
            return None, [f"No joint row: the checkpoint was trained by {name}; name a pretext task with --task."]
        return name, []


def _choose_out(spec: LadderSpec) -> Path:
    """Return the folder for the trainings; raises SslkitError for one that is not empty, unless it is continued."""
    out = Path(spec.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not spec.resume:
        raise SslkitError(f"{out} already exists", "continue it with --resume, or choose another folder", flag="out")
    return out


def _needs_options(task: str) -> bool:
    """Return whether a task has options without a default."""
    return any(field.is_required() for field in load_task(task).Options.model_fields.values())


def _name(rung: str, share: float) -> str:
    """Return the name of a row."""
    return rung if share == 1 else f"{rung}, {100 * share:g}% of the labels"


def _fit(run: PretrainResult, seed: int, labeled: int, share: float) -> Fit:
    loss = run.loss if run.loss is not None and math.isfinite(run.loss) else None
    training = Training(run.run, share, run.steps, run.samples_per_second, run.seconds, loss)
    return Fit(seed, labeled, training=training)


def _compare(rows: list[Row]) -> list[str]:
    """Return a sentence for each row about its difference to supervised training alone."""
    sentences, several = [], len({row.test for row in rows}) > 1
    for row in rows:
        for comparison in row.comparisons.values():
            difference, low, high = (100 * (value or 0.0) for value in (comparison.difference, comparison.low, comparison.high))
            where = f", {row.test}" if several else ""
            sentences.append(f"{row.model}{where}: {difference:+.1f} points ({low:+.1f} to {high:+.1f}) against {SUPERVISED}.")
    return sentences
