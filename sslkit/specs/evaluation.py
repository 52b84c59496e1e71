"""Specs of commands that evaluate frozen features."""

from typing import Literal

from pydantic import Field

from sslkit.contract.options import Count, Texts
from sslkit.specs.data import DataSpec


class FeatureSpec(DataSpec):
    """Hold what all commands that take features are told: by which encoder, and where in it."""

    ckpt: str = Field(description="model.safetensors of a run.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    layer: str = Field(
        default="last",
        pattern=r"^(last|last4|all|[1-9]\d*)$",
        description="last, last4 (four side by side), all (a row each), or a number.",
    )
    pool: Literal["auto", "average", "class", "both"] = Field(
        default="auto", description="Patches, class token or both side by side; auto: as the encoder pools."
    )


class EvaluationSpec(FeatureSpec):
    """Hold what all evaluations of frozen features share: labeled data, and what to compare with."""

    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated: a row each.")
    against: Texts = Field(
        default=[], description="Another checkpoint, or a pretrained NAME or NAME@SIZE of timm or torchvision; may be repeated."
    )
    baselines: bool = Field(default=True, description="Also random weights, and raw pixels or mean spectra.")


class KnnSpec(EvaluationSpec):
    """Hold what `sslkit knn` is told."""

    protocol: Literal["knn/weighted-v1", "knn/weighted200-v1", "knn/plain-v1", "knn/fewshot-v1"] = Field(
        default="knn/weighted-v1", description="See `sslkit protocols`."
    )
    k: int | None = Field(default=None, ge=1, description="Neighbors; by hand: the result carries no protocol id.")
    temperature: float | None = Field(
        default=None, gt=0, description="Temperature; by hand: the result carries no protocol id."
    )
    shots: int | None = Field(default=None, ge=1, description="Training images of each class; default: all.")
    seeds: Count | None = Field(default=None, description="Draw the shots with so many seeds: mean and spread.")


class ProbeSpec(EvaluationSpec):
    """Hold what `sslkit probe` is told."""

    protocol: Literal["probe/logreg-v1", "probe/sweep-v1", "probe/svm-v1"] = Field(
        default="probe/logreg-v1", description="See `sslkit protocols`."
    )
    c: float | None = Field(
        default=None, gt=0, description="Inverse regularization; by hand: the result carries no protocol id."
    )
    lr: float | None = Field(
        default=None, gt=0, description="Learning rate of the sweep's heads; by hand: the result carries no protocol id."
    )
    seeds: Count | None = Field(default=None, description="Repeat with so many seeds: mean and spread.")


class RetrievalSpec(EvaluationSpec):
    """Hold what `sslkit retrieval` is told."""


class EvaluateSpec(EvaluationSpec):
    """Hold what `sslkit evaluate` is told."""

    protocol: Texts = Field(
        default=["knn", "probe", "retrieval"],
        description="Protocols, or the first part of their names; all: fine-tuning, too. May be repeated.",
    )
    seeds: Count | None = Field(default=None, description="Repeat what trains with so many seeds: mean and spread.")
    out: str | None = Field(default=None, description="Folder for the table, and the runs of fine-tuning.")
    resume: bool = Field(default=False, description="Go on with the table in --out; starts afresh if there is none.")
