"""Specs of commands on images with captions."""

from pydantic import Field

from sslkit.contract.options import Texts
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


class CaptionSpec(DataSpec):
    """Settings of `sslkit caption`."""

    ckpt: str = Field(description="model.safetensors of a run of `virtex`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    out: str = Field(description=".csv to write: path and caption, and the known caption if there is one.")
    beam: int = Field(default=1, ge=1, le=64, description="Captions that beam search keeps (5 in VirTex); 1: greedy.")
