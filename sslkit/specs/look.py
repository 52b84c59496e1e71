"""Specs of commands that draw pictures and reports."""

from typing import Any, Literal

from pydantic import Field

from sslkit.contract.options import Texts
from sslkit.specs.data import DataSpec
from sslkit.specs.use import EmbedSpec


class MapSpec(EmbedSpec):
    """Hold what `sslkit map` is told."""

    out: str = Field(default="map.png", description="Picture to write (.png).")
    method: Literal["tsne", "pca"] = Field(default="tsne", description="How features become two numbers.")
    samples: int = Field(default=2000, ge=10, description="Images at most, drawn by --seed.")


class PreviewSpec(DataSpec):
    """Hold what `sslkit preview` is told."""

    task: str | None = Field(default=None, description="Name of an installed task or a .py file; default: the checkpoint's.")
    ckpt: str | None = Field(
        default=None, description="model.safetensors in its run folder: what the trained task says; default: what it sees."
    )
    out: str = Field(default="previews.png", description="Picture to write (.png).")
    rows: int = Field(default=8, ge=1, le=100, description="Rows of the picture at most.")
    images: int = Field(default=256, ge=2, le=2_000, description="Images drawn by --seed; clusters are filled from them.")
    encoder: str = Field(
        default="auto",
        description="A name from `sslkit encoders`, any timm name, torchvision:NAME or package.module:factory.",
        json_schema_extra={"completes": "encoder"},
    )
    encoder_option: dict[str, str] = Field(default={}, description="KEY=VALUE for the encoder's factory; may be repeated.")
    options: dict[str, Any] = Field(default={}, description="The task's own options.")


class ReportSpec(DataSpec):
    """Hold what `sslkit report` is told."""

    runs: list[str] = Field(default=[], description="Folders of runs.")
    out: str = Field(default="report.html", description="Page to write (.html); it needs no other file.")
    encoder: str | None = Field(default=None, description="Repeat package.module:factory here to allow it to be imported.")
    test: Texts = Field(default=[], description="Test data of the confusion matrix; default: the test part of --data.")
    samples: int = Field(default=500, ge=10, description="Images on the map at most, drawn by --seed.")
