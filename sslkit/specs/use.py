"""Specs of commands that write files from a checkpoint."""

from pydantic import Field, field_validator

from sslkit import registry
from sslkit.contract.errors import did_you_mean
from sslkit.specs.data import DataSpec, ModalitySpec
from sslkit.specs.evaluation import FeatureSpec


class EmbedSpec(FeatureSpec):
    """Hold what `sslkit embed` is told."""

    out: str = Field(default="features.npz", description="File to write: features, paths, labels (if there are any).")


class PredictSpec(DataSpec):
    """Hold what `sslkit predict` is told."""

    ckpt: str = Field(description="model.safetensors of a run of `finetune`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    out: str = Field(default="predictions.csv", description="File to write: path, class and probability.")


class NeighborsSpec(DataSpec):
    """Hold what `sslkit neighbors` is told."""

    ckpt: str = Field(description="model.safetensors of a run.")
    queries: list[str] = Field(default=[], description="Words, or image files; default: eight images of the data.")
    k: int = Field(default=10, ge=1, description="How many neighbors.")
    out: str = Field(default="neighbors.png", description="Picture of the neighbors to write (.png); words have none.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")


class ExportSpec(ModalitySpec):
    """Hold what `sslkit export` is told."""

    ckpt: str = Field(description="model.safetensors of a run.")
    to: str = Field(
        default="pt2", description="Format: pt2, onnx, timm, torchvision, word2vec or an installed exporter's name."
    )
    out: str | None = Field(default=None, description="File to write, with a card beside it; default: beside the run folder.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    dynamic_batch: bool = Field(default=True, description="Let pt2 and ONNX take any number of images at once.")
    dynamic_size: bool = Field(default=False, description="Let pt2 and ONNX take images of any size, if the encoder does.")

    @field_validator("to")
    @classmethod
    def _check_format(cls, name: str) -> str:
        names = registry.names(registry.EXPORTERS)
        if name not in names:
            raise ValueError(f"unknown export format, {did_you_mean(name, names)}")
        return name
