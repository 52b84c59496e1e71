"""Specs of commands that write files from a checkpoint."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator

from sslkit import registry
from sslkit.contract.errors import did_you_mean
from sslkit.contract.options import Spec
from sslkit.specs.data import PART, DataSpec, ModalitySpec
from sslkit.specs.evaluation import FeatureSpec

REPOSITORY = r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*"  # OWNER/NAME on the Hub
License = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+-]*$")]


class EmbedSpec(FeatureSpec):
    """Settings of `sslkit embed`."""

    out: str = Field(
        default="features.npz",
        description="File to write: features, paths and labels in .npz or .parquet; .npy: features, with .paths.csv beside it.",
    )


class CurateSpec(FeatureSpec):
    """Settings of `sslkit curate`."""

    layer: str = Field(default="last", pattern=r"^(last|last4|[1-9]\d*)$", description="last, last4, or a number.")
    out: str = Field(default="chosen.csv", description="Table of samples to keep; NAME.left-out.csv beside it has the others.")
    duplicates: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        default="auto",
        description="Cosine of centered features from which neighbors are near duplicates; 1: none are; auto: images whose "
        "details match, or 0.98.",
    )
    outliers: float = Field(
        default=0.0, ge=0, lt=1, description="Share of samples with the least similar neighbors to leave out."
    )
    neighbors: int = Field(
        default=10, ge=1, description="Nearest samples that may be duplicates, and whose mean cosine says how typical one is."
    )
    label_errors: float = Field(
        default=0.0, ge=0, lt=1, description="Share of samples to leave out whose label the fewest of their neighbors have."
    )
    clusters: int = Field(default=100, ge=1, description="Clusters of k-means.")
    keep: float = Field(default=1.0, gt=0, le=1, description="Share of the rest to choose.")
    select: Literal["balanced", "diverse", "random"] = Field(
        default="balanced", description="balanced: equally many of each cluster; diverse: far from each other; random."
    )


class PredictSpec(DataSpec):
    """Settings of `sslkit predict`."""

    ckpt: str = Field(description="Checkpoint of a `finetune` run (model.safetensors).")
    encoder: str | None = Field(
        default=None, description="Repeat a checkpoint's package.module:factory here to allow importing it."
    )
    out: str = Field(default="predictions.csv", description="File to write (.csv): path, class, probability.")


class SearchSpec(DataSpec):
    """Settings of `sslkit search`."""

    ckpt: str = Field(description="Checkpoint of a run (model.safetensors).")
    part: str = PART
    queries: list[str] = Field(
        default=[],
        description="Words of word vectors, files of samples, or texts where there is a text encoder; default: eight samples.",
    )
    k: int = Field(default=10, ge=1, description="Number of neighbors.")
    approximate: bool = Field(default=False, description="Search by inverted lists of FAISS: faster in millions of samples.")
    out: str = Field(default="search.png", description="Picture of the neighbors to write (.png); words have none.")
    encoder: str | None = Field(
        default=None, description="Repeat a checkpoint's package.module:factory here to allow importing it."
    )


class PushSpec(Spec):
    """Settings of `sslkit push`."""

    source: str = Field(description="Run folder, or a folder that `sslkit export --to hf` wrote.")
    repository: str = Field(description="Repository on the Hub, OWNER/NAME; made if it is not there.")
    public: bool = Field(default=False, description="Upload to a public repository; a new one is private without it.")
    license: License | None = Field(default=None, description="License for the card of a run; a folder has a card already.")
    encoder: str | None = Field(
        default=None, description="Repeat a checkpoint's package.module:factory here to allow importing it."
    )
    yes: bool = Field(default=False, description="Upload without asking.")

    @field_validator("repository")
    @classmethod
    def _check_repository(cls, name: str) -> str:
        if not re.fullmatch(REPOSITORY, name):
            raise ValueError(f"{name} is not a repository name (expected OWNER/NAME)")
        return name


class ExportSpec(ModalitySpec):
    """Settings of `sslkit export`."""

    ckpt: str = Field(description="Checkpoint of a run (model.safetensors).")
    part: str = PART
    to: str = Field(
        default="pt2",
        description="Format: pt2, onnx, timm, torchvision, hf, word2vec or an installed exporter's name.",
        json_schema_extra={"completes": "format"},
    )
    out: str | None = Field(
        default=None, description="File to write, with a model card beside it, or folder (hf); default: beside the run folder."
    )
    encoder: str | None = Field(
        default=None, description="Repeat a checkpoint's package.module:factory here to allow importing it."
    )
    dynamic_batch: bool = Field(default=True, description="Let pt2 and ONNX take any batch size.")
    dynamic_size: bool = Field(default=False, description="Let pt2 and ONNX take images of any size, if the encoder does.")
    license: License | None = Field(
        default=None, description="License of the weights for the card, such as apache-2.0; default: not stated."
    )

    @field_validator("to")
    @classmethod
    def _check_format(cls, name: str) -> str:
        names = registry.names(registry.EXPORTERS)
        if name not in names:
            raise ValueError(f"unknown export format, {did_you_mean(name, names)}")
        return name
