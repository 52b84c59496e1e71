"""Turn a spec into settled values that fit machine and data, each with its reason."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sslkit import encoders
from sslkit.console import say
from sslkit.data.canvas import Canvases, choose_folder
from sslkit.data.image import short_sides
from sslkit.data.index import Index
from sslkit.data.loader import choose_workers
from sslkit.engine.precision import Machine, choose_machine
from sslkit.errors import SslkitError
from sslkit.specs import DataSpec, TrainSpec
from sslkit.task import DataInfo

SIZES = (32, 64, 96, 128, 160, 224)


@dataclass(frozen=True)
class Plan:
    """Hold everything a training run was told or has found out."""

    spec: TrainSpec  # nothing `auto` is left in what changes the result
    canvases: Canvases
    machine: Machine
    workers: int
    reasons: dict[str, str]  # what `auto` became and why, by flag

    @property
    def index(self) -> Index:
        """Return the samples."""
        return self.canvases.index

    @property
    def data(self) -> DataInfo:
        """Return what a task is told about the data."""
        assert isinstance(self.spec.size, int)
        return DataInfo(len(self.index), self.spec.size, self.index.channels)

    @property
    def recipe(self) -> encoders.Recipe:
        """Return the recipe of the encoder."""
        spec = self.spec
        return encoders.recipe_for(spec.encoder, self.data.size, self.data.channels, spec.encoder_option, spec.pretrained)

    @property
    def steps_per_epoch(self) -> int:
        """Return the full batches in one pass."""
        return len(self.index) // self.spec.batch_size


def make_plan(spec: TrainSpec, index: Index, reads: tuple[str, ...]) -> Plan:
    """Settle every `auto` of a spec; raises SslkitError for what this machine or data can't do."""
    machine = choose_machine(spec.device, spec.precision, spec.compile)
    reasons = dict(machine.reasons)
    # A run goes on elsewhere as it began; where it runs is not part of it.
    settled: dict[str, Any] = {"precision": machine.precision, "compile": "on" if machine.compile else "off"}
    side = int(np.median(short_sides(index)))
    if spec.size == "auto":
        settled["size"] = max((size for size in SIZES if size <= side), default=SIZES[0])
        reasons["size"] = f"{settled['size']}: images have {side} px on the short side"
    size = settled.get("size", spec.size)
    if spec.canvas == "auto":
        settled["canvas"], reasons["canvas"] = choose_canvas(size, side)
    if spec.encoder == "auto":
        settled["encoder"], reasons["encoder"] = _choose_encoder(size, machine, reads)
    if spec.epochs == "auto" and spec.steps is None and spec.minutes is None:
        settled["epochs"] = 100
        reasons["epochs"] = "100: usual for pretraining; --minutes sets a time instead"
    if spec.steps is not None or spec.minutes is not None:
        settled["epochs"] = "auto"  # one length is recorded
    spec = spec.model_copy(update=settled)
    if len(index) < spec.batch_size:
        raise SslkitError(
            f"--batch-size: {spec.batch_size} is more than the {len(index)} images in {index.source}",
            f"the largest that works is {len(index)}",
        )
    folder, reasons["cache"] = choose_folder(index, spec.canvas, spec.cache, spec.cache_limit)  # type: ignore[arg-type]
    canvases = Canvases(index, spec.canvas, folder)  # type: ignore[arg-type]
    workers, why = choose_workers(canvases, spec.workers)
    reasons["workers"] = f"{workers}: {why}"
    return Plan(spec, canvases, machine, workers, reasons)


def choose_canvas(size: int, side: int) -> tuple[int, str]:
    """Return the canvas for a training size and the images' median short side in pixels."""
    if side <= 64:
        return max(side, 8), f"{max(side, 8)}: small images are kept whole"
    canvas = min(side, round(size * 8 / 7))
    return max(canvas, 8), f"{canvas}: 8/7 of the size leaves room for crops"


def open_canvases(spec: DataSpec, index: Index, size: int) -> Canvases:
    """Return the canvases an evaluation at `size` reads: the same ones training at that size would use."""
    canvas, _ = choose_canvas(size, int(np.median(short_sides(index))))
    folder, _ = choose_folder(index, canvas, spec.cache, spec.cache_limit)
    return Canvases(index, canvas, folder)


def show_plan(plan: Plan, title: str, out: Path) -> None:
    """Print what is about to run, with the reason for each choice that was made for the user."""
    say(f"{title} on {len(plan.index):,} images from {plan.index.source} -> {out}", style="bold")
    for flag in ("size", "canvas", "encoder", "epochs", "device", "precision", "compile", "workers", "cache"):
        if flag in plan.reasons:
            say(f"  {flag:<10} {plan.reasons[flag]}")


def _choose_encoder(size: int, machine: Machine, reads: tuple[str, ...]) -> tuple[str, str]:
    tokens = "tokens" in reads
    if size <= 64 or machine.device.type == "cpu":
        name = "vit_micro" if tokens else "resnet_micro"
        why = "images up to 64 px" if size <= 64 else "trains on a CPU"
    else:
        name, why = "vit_small_patch16_224" if tokens else "resnet50", "the usual one on a GPU"
    return name, f"{name}: {why}{', has tokens' if tokens else ''}"
