"""Specs of evaluations of images with captions."""

from pydantic import Field

from sslkit.contract.options import Texts
from sslkit.specs.data import DataSpec


class ZeroshotSpec(DataSpec):
    """Hold what `sslkit zeroshot` is told."""

    ckpt: str = Field(description="model.safetensors of a run of `clip`.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    labels: str | None = Field(
        default=None, description="File with a line for each class: its name, or CLASS,NAME; default: the data's own names."
    )
    templates: Texts = Field(default=["{}"], description="Prompt with {} for the name of a class; the mean of several counts.")
    baselines: bool = Field(default=True, description="Also the same networks with random weights.")
