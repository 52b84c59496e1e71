"""Specs of commands on images with captions."""

from pydantic import Field

from sslkit.contract.options import Count, Texts
from sslkit.specs.data import DataSpec


class ZeroshotSpec(DataSpec):
    """Options of `zeroshot`."""

    ckpt: str = Field(description="model.safetensors of a run of `clip`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    labels: str | None = Field(
        default=None, description="File with a line per class: its name, or CLASS,NAME; default: the data's class names."
    )
    templates: Texts = Field(default=["{}"], description="Prompt with {} for the class name; several are averaged.")
    baselines: bool = Field(default=True, description="Also evaluate the same networks with random weights.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")
    rerank: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="Candidates by cosine, 10 at least, that albef reranks by how well they match; 0: none.",
    )


class CaptionSpec(DataSpec):
    """Settings of `sslkit caption`."""

    ckpt: str = Field(description="model.safetensors of a run of `virtex`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    out: str = Field(description=".csv to write: path and caption, and the known caption if there is one.")
    beam: int = Field(default=1, ge=1, le=64, description="Captions that beam search keeps (5 in VirTex); 1: greedy.")


class PairsSpec(DataSpec):
    """Options of `pairs`."""

    ckpt: str = Field(description="model.safetensors of a run of `albef` or `vilt`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    test: Texts = Field(default=[], description="Test data; default: the test part of --data. May be repeated: rows for each.")
    epochs: Count = Field(default=10, description="Passes over the training part.")
    lr: float = Field(default=5e-4, gt=0, description="Peak learning rate.")
    batch_size: int = Field(default=32, ge=2, description="Pairs per step.")
    baselines: bool = Field(default=True, description="Also train random weights, and answer with the most frequent class.")
    details: bool = Field(default=False, description="Also print p-values and adjustments.")
