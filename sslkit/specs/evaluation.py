"""Specs of commands that evaluate frozen features."""

from typing import Literal

from pydantic import Field

from sslkit.contract.options import Count, Numbers, Shares, Texts
from sslkit.specs.data import PART, DataSpec

LAYER = Field(
    default="last",
    pattern=r"^(last|last4|all|[1-9]\d*)$",
    description="last, last4 (the last four concatenated), all (a row each), or a number counted from the input.",
)


class FeatureSpec(DataSpec):
    """Which encoder computes features, and from which of its layers: the part that all commands on features share."""

    ckpt: str = Field(description="model.safetensors of a run.")
    part: str = PART
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    layer: str = LAYER
    pool: Literal["auto", "average", "class", "both", "last"] = Field(
        default="auto",
        description="Pooling of tokens: average, class token, both, or the last token of a text; auto: the encoder's own.",
    )


class EvaluationSpec(FeatureSpec):
    """Test data and models to compare with: the part that all evaluations of frozen features share."""

    layer: str = Field(
        default="last",
        pattern=r"^(last|last4|all|auto|[1-9]\d*)$",
        description="last, last4 (the last four concatenated), all (a row each), a number counted from the input, or auto: "
        "chosen on a fifth of the training part.",
    )
    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated: a row each.")
    against: Texts = Field(
        default=[],
        description="Other model to compare with: a checkpoint, or NAME or NAME@SIZE of timm or torchvision. May be repeated.",
    )
    baselines: bool = Field(default=True, description="Also evaluate random weights, and raw pixels or mean spectra.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class KnnSpec(EvaluationSpec):
    """Options of `knn`."""

    protocol: Literal["knn/weighted-v1", "knn/weighted200-v1", "knn/plain-v1", "knn/chosen-layer-v1", "knn/fewshot-v1"] = Field(
        default="knn/weighted-v1", description="Named protocol (see `sslkit protocols`)."
    )
    k: int | None = Field(default=None, ge=1, description="Neighbors that vote; set by hand, the result has no protocol id.")
    temperature: float | None = Field(
        default=None, gt=0, description="Temperature of the votes; set by hand, the result has no protocol id."
    )
    shots: int | None = Field(default=None, ge=1, description="Training samples per class; default: all.")
    seeds: Count | None = Field(default=None, description="Random draws of the shots: mean and standard deviation.")


class ProbeSpec(EvaluationSpec):
    """Options of `probe`."""

    layer: str = Field(
        default="last",
        pattern=r"^(last|last4|all|auto|mix|[1-9]\d*)$",
        description="last, last4 (the last four concatenated), all (a row each), a number counted from the input, auto: chosen "
        "on a fifth of the training part, or mix: a weighted sum of all, learned with the classifier.",
    )

    protocol: Literal["probe/logreg-v1", "probe/chosen-layer-v1", "probe/sweep-v1", "probe/svm-v1"] = Field(
        default="probe/logreg-v1", description="Named protocol (see `sslkit protocols`)."
    )
    c: float | None = Field(
        default=None, gt=0, description="Inverse regularization C; set by hand, the result has no protocol id."
    )
    lr: float | None = Field(
        default=None, gt=0, description="Learning rate of the sweep's heads; set by hand, the result has no protocol id."
    )
    seeds: Count | None = Field(default=None, description="Repetitions with different seeds: mean and standard deviation.")


class FewshotSpec(EvaluationSpec):
    """Options of `fewshot`."""

    layer: str = LAYER
    shots: Numbers = Field(default=[1, 5, 10, 50], description="Labels per class; may be repeated.")
    seeds: Count | None = Field(default=None, description="Draws of the labels: mean and standard deviation; default: 10.")
    c: float | None = Field(
        default=None, gt=0, description="Inverse regularization C; set by hand, the result has no protocol id."
    )
    out: str | None = Field(default=None, description="PNG file for a picture of the curves.")


class RegressSpec(EvaluationSpec):
    """Options of `regress`."""

    layer: str = LAYER


class VerifySpec(EvaluationSpec):
    """Options of `verify`."""

    layer: str = LAYER

    samples: int = Field(default=500, ge=2, le=2000, description="Samples at most, spread evenly over the test part.")


class RetrievalSpec(EvaluationSpec):
    """Options of `retrieval`."""


class LadderSpec(DataSpec):
    """Options of `ladder`."""

    ckpt: str = Field(description="model.safetensors of a pretraining run.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    task: str | None = Field(
        default=None,
        description="Pretext task of the joint training; default: the checkpoint's, with its default options.",
        json_schema_extra={"completes": "task"},
    )
    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated: a row each.")
    shares: Shares = Field(default=[0.01, 0.1], description="Share of the labels of each class; may be repeated.")
    seeds: Count = Field(default=3, description="Draws of the labels: mean and standard deviation.")
    steps: int = Field(default=1000, ge=1, description="Optimizer steps of every training.")
    batch_size: int = Field(default=64, ge=2, description="Samples per step; fewer if there are fewer labels.")
    out: str = Field(default="ladder", description="Folder for the training runs.")
    resume: bool = Field(default=False, description="Continue the trainings in --out where they stopped.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")


class EvaluateSpec(EvaluationSpec):
    """Options of `evaluate`."""

    data: Texts = Field(  # type: ignore[assignment]  # which evaluations read one at a time
        default=[],
        description="Labeled data, as for other commands; default: the run's. May be repeated: results for each, and the mean.",
    )
    protocol: Texts = Field(
        default=["knn", "probe", "retrieval"],
        description="Protocol, verb (all of its protocols) or all (every one but the ladder). May be repeated.",
    )
    seeds: Count | None = Field(
        default=None, description="Repetitions of what depends on the seed: mean and standard deviation."
    )
    out: str | None = Field(default=None, description="Folder for the table and for fine-tuning runs.")
    resume: bool = Field(default=False, description="Continue the table in --out; starts a new one if there is none.")
