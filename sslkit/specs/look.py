"""Specs of commands that draw pictures and reports."""

from typing import Any, Literal

from pydantic import Field

from sslkit.contract.options import Spec, Texts
from sslkit.specs.data import DataSpec
from sslkit.specs.use import EmbedSpec


class MapSpec(EmbedSpec):
    """Settings of `sslkit map`."""

    out: str = Field(default="map.png", description="Picture to write (.png).")
    method: Literal["tsne", "pca"] = Field(default="tsne", description="Projection to two dimensions.")
    samples: int = Field(default=2000, ge=10, description="Maximum number of samples, drawn by --seed.")


class PreviewSpec(DataSpec):
    """Settings of `sslkit preview`."""

    task: str | None = Field(default=None, description="Installed task or a .py file; default: the checkpoint's.")
    ckpt: str | None = Field(
        default=None, description="Checkpoint in its run folder: show its predictions; default: show only the task's inputs."
    )
    out: str = Field(default="previews.png", description="Picture to write (.png).")
    rows: int = Field(default=8, ge=1, le=100, description="Maximum number of rows.")
    samples: int = Field(
        default=256, ge=2, le=2_000, description="Samples drawn by --seed; cluster sheets are filled from them."
    )
    encoder: str = Field(
        default="auto",
        description="Encoder: a name from `sslkit encoders`, any timm name, torchvision:NAME or package.module:factory.",
        json_schema_extra={"completes": "encoder"},
    )
    encoder_option: dict[str, str] = Field(
        default={},
        description="KEY=VALUE passed to the encoder's factory; norm=group replaces BatchNorm by GroupNorm; may be repeated.",
    )
    options: dict[str, Any] = Field(default={}, description="Options of the task.")


class ReportSpec(DataSpec):
    """Settings of `sslkit report`."""

    runs: list[str] = Field(default=[], description="Run folders.")
    out: str = Field(default="report.html", description="Page to write (.html), self-contained.")
    encoder: str | None = Field(
        default=None, description="Repeat a checkpoint's package.module:factory here to allow importing it."
    )
    test: Texts = Field(default=[], description="Test data of the confusion matrix; default: the test part of --data.")
    samples: int = Field(default=500, ge=10, description="Maximum number of samples on the map, drawn by --seed.")


class WatchSpec(Spec):
    """Settings of `sslkit watch`."""

    run: str = Field(description="Run folder, or a folder of runs; it need not exist yet.")
    port: int = Field(default=0, ge=0, le=65535, description="Port on this machine; 0: a free one.")
    open: bool = Field(default=False, description="Open the page in a browser.")
