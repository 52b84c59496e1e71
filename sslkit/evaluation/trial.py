"""One training of a fine-tuning, and its scores on the test parts."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import DataInfo, PretextTask
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.encoders.build import build_encoder
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.features import contents, extract
from sslkit.engine.job import Outcome, TrainingJob
from sslkit.engine.parallel import World
from sslkit.engine.precision import Machine
from sslkit.engine.resume import recorded_spec
from sslkit.engine.run_folder import holds_run
from sslkit.engine.settings import resolve_settings
from sslkit.engine.training import run_training
from sslkit.evaluation.features import report_unreadable
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.splits import Parts, held_out_rows
from sslkit.evaluation.statistics import count_duplicates
from sslkit.evaluation.supervised import Supervised
from sslkit.specs.train import FinetuneSpec

SCRATCH = "from scratch"


@dataclass(frozen=True)
class Trial:
    """One training of several: share of the labels, seed, start."""

    share: float
    seed: int
    scratch: bool
    out: Path

    @property
    def model(self) -> str:
        """Return the name of the trial's row."""
        start = SCRATCH if self.scratch else "fine-tuned"
        return start if self.share == 1 else f"{start}, {100 * self.share:g}% of the labels"


@dataclass(frozen=True)
class TrialOutcome:
    """A finished trial and its class scores `[M, classes]` of each test part."""

    trial: Trial
    run: Outcome
    n_train: int
    size: int
    loss: str
    scores: list[Tensor]
    labels: list[Tensor]
    rows: list[NDArray[np.int64]]
    duplicates: list[int]
    weights: str


@dataclass(frozen=True)
class Trainer:
    """Run trials: what they share."""

    spec: FinetuneSpec
    parts: Parts
    source_class: type[IndexedSource]
    checkpoint: Checkpoint | None  # None: training from scratch
    allowed: str | None  # a package.module:factory that may be imported
    continues: bool
    world: World

    def run(self, trial: Trial, first: bool) -> TrialOutcome:
        """Train once, then compute scores on each test part once; the first of a command's trials shows its settings."""
        job = replace(self._job(trial), shows_settings=first)
        outcome = run_training(job)
        task, source = outcome.task, job.settings.source
        assert isinstance(task, Supervised) and isinstance(source, self.source_class)
        return self._test(trial, outcome, task, source, job.settings.machine)

    def _job(self, trial: Trial) -> TrainingJob:
        """Describe the training of a trial on its share of the labels."""
        spec, train = self._trial_spec(trial), self._training_part(trial)
        trained = None if self.checkpoint is None else self.checkpoint.build_encoder(self.allowed)
        source = self.source_class.for_finetuning(train, spec, trained)
        if spec.cache == "auto" and source.resolved.get("cache", ("",))[0] == "compact":
            # No protocol has other pixels.
            source = self.source_class.for_finetuning(train, spec.updated({"cache": "off"}), trained)
        encodes = source.info.modality if self.checkpoint is None else self.checkpoint.modality
        settings = resolve_settings(spec, source, encodes, ("pooled",), self.world)
        assert train.labels is not None
        labels, spec = torch.from_numpy(train.labels), spec.model_copy(update={"encoder": settings.spec.encoder})

        def build_start(build: RecipeBuilder) -> Encoder:
            if self.checkpoint is None or trained is None:
                return build()
            if not trial.scratch:
                return self.checkpoint.build_encoder(self.allowed)
            untrained = build_encoder(self.checkpoint.recipe, allowed=self.allowed)
            untrained.take_over(trained)
            return untrained

        def build_task(encoder: Encoder, data: DataInfo) -> PretextTask:
            return Supervised(spec, encoder, data, labels, tuple(self.parts.classes))

        several = labels.dim() == 2
        return TrainingJob(
            name="finetune",
            command="finetune",
            settings=settings,
            out=trial.out,
            build_encoder=build_start,
            build_task=build_task,
            requires={"finetune": ("pooled",)},
            metadata={
                "classes": list(self.parts.classes),
                "data": self.parts.fingerprint,
                "several_labels": several,
                "loss": ("sigmoid" if several else "softmax") if spec.loss == "auto" else spec.loss,
                **self._origin(trial, trained),
            },
        )

    def _trial_spec(self, trial: Trial) -> FinetuneSpec:
        """Return the settings of a trial; those that its run recorded, if it continues one."""
        values: dict[str, Any] = {"shares": [trial.share], "seed": trial.seed, "seeds": 1}
        spec = self.spec.model_copy(update={**values, "out": str(trial.out)})
        if not (self.continues and holds_run(trial.out)):
            return spec
        recorded = recorded_spec(spec, trial.out)
        assert isinstance(recorded, FinetuneSpec)
        return recorded

    def _training_part(self, trial: Trial) -> Index:
        """Return the training samples, or the trial's share of each class."""
        train = self.parts.train
        if trial.share == 1:
            return train
        part = train.subset(held_out_rows(train.labels, trial.seed, train.classes, trial.share)[1])
        if len(part) < self.spec.batch_size:
            raise SslkitError(
                f"{100 * trial.share:g}% of the labels are {len(part)} samples, fewer than a batch of {self.spec.batch_size}",
                f"use --batch-size {len(part)} or less, or a larger share",
                flag="shares",
            )
        return part

    def _origin(self, trial: Trial, trained: Encoder | None) -> dict[str, Any]:
        """Return by which task and from which weights a training began, for its own checkpoint's metadata."""
        if self.checkpoint is None or trained is None or trial.scratch:
            return {}
        return {"pretrained_by": {"task": self.checkpoint.metadata["task"], "weights": weights_hash(trained)}}

    def _test(self, trial: Trial, run: Outcome, task: Supervised, source: IndexedSource, machine: Machine) -> TrialOutcome:
        """Compute scores on each test part."""
        spec, size, modules = task.options, source.info.size, task.exports()
        assert isinstance(spec, FinetuneSpec)
        encoder, head = modules["encoder"], modules["head"]
        assert isinstance(encoder, Encoder)
        # Decoded as the test parts are, because training's canvases have other pixels.
        train = self.source_class.for_evaluation(source.index, spec, encoder, size, like=source)
        train_hashes = contents(train, spec.batch_size, spec.workers, self.world)
        outcome = TrialOutcome(trial, run, len(train_hashes), size, task.kind, [], [], [], [], weights_hash(encoder))
        for test in self.parts.tests:
            samples = self.source_class.for_evaluation(test.index, spec, encoder, size, like=source)
            features = extract(encoder, samples, machine, spec.batch_size, spec.workers, hashed=True)
            report_unreadable(samples, features)
            with torch.no_grad():
                outcome.scores.append(head(features.layers["last"].to(encoder.device)).float().cpu())
            assert test.index.labels is not None
            outcome.labels.append(torch.from_numpy(test.index.labels[features.rows]))
            outcome.rows.append(features.rows)
            outcome.duplicates.append(count_duplicates(train_hashes, features.hashes))
        return outcome
