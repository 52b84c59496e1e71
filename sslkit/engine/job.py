"""A training job: the frozen description of what to run, and how it ended."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sslkit.contract.encoder import Encoder, over_views
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import DataInfo, PretextTask
from sslkit.encoders.build import check_requirements
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.features import read_views
from sslkit.engine.initial import load_initial
from sslkit.engine.precision import Machine
from sslkit.engine.run_folder import MODEL
from sslkit.engine.seeds import seed_stage
from sslkit.engine.settings import Settings
from sslkit.registry import load_modality


@dataclass(frozen=True)
class TrainingJob:
    """Everything that is needed to train a task; nothing is built or written yet."""

    name: str
    command: str  # that starts it: `pretrain rotation`
    settings: Settings
    out: Path
    build_encoder: Callable[[RecipeBuilder], Encoder]
    build_task: Callable[[Encoder, DataInfo], PretextTask]
    requires: dict[str, tuple[str, ...]]  # what each task requires of the encoder
    metadata: dict[str, Any]  # of the checkpoint, besides the encoder's description
    classify: Callable[[Encoder, Machine], float] | None = None  # returns k-NN accuracy during training
    shows_settings: bool = True  # unless another training of the same command has


@dataclass(frozen=True)
class Outcome:
    """How a training run ended."""

    run: Path
    task: PretextTask
    steps: int
    samples_per_second: float
    loss: float | None
    metrics: dict[str, float]  # that answer the pretext question, in the last line of the log
    chance: dict[str, float]  # what a guess reaches, of the metrics of which that is known
    seconds: float

    @property
    def checkpoint(self) -> Path:
        """Return the path of the trained weights."""
        return self.run / MODEL


def build_task(job: TrainingJob, initialize: bool) -> PretextTask:
    """Build encoder and task under the seed; pretrained and `--init` weights are loaded only if `initialize`."""
    settings, spec = job.settings, job.settings.spec
    build = RecipeBuilder(
        settings.recipe, settings.data, settings.encodes, pretrained=spec.pretrained and initialize, allowed=spec.encoder
    )
    seed_stage(spec.seed, "build", 0)
    encoder = job.build_encoder(build)
    if spec.init is None and spec.dialect != "auto":
        raise SslkitError("it describes the file of --init, and there is none", "leave it out", flag="dialect")
    if spec.init is not None and initialize:
        load_initial(encoder, spec.init, spec.dialect)
    for name, requires in job.requires.items():
        check_requirements(encoder, spec.encoder, requires, name, load_modality(settings.encodes))
    if spec.activation_checkpointing and not encoder.checkpoint_activations():
        raise SslkitError(
            f"{spec.encoder} does not support it",
            "use a timm encoder without BatchNorm; --micro-batch saves memory too",
            flag="activation_checkpointing",
        )
    _check_shape(encoder, settings)
    return job.build_task(encoder, settings.data)


@torch.no_grad()
def _check_shape(encoder: Encoder, settings: Settings) -> None:
    """Run two samples through the encoder, so that a shape it cannot take fails now instead of in the first step."""
    source = settings.source
    view = read_views(source, np.array([0, 1]), encoder.modality, torch.device("cpu"))
    try:
        encoder.eval()
        over_views(lambda view: {"": encoder(view)}, encoder.sample_dims, view)
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise SslkitError(
            f"{settings.spec.encoder} cannot take samples of size {settings.data.size}: {reason}", flag="size"
        ) from error
