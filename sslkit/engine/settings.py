"""Resolve a spec's `auto` values for this machine and data, each with its reason."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sslkit.console import say
from sslkit.contract.errors import SslkitError
from sslkit.contract.source import Source
from sslkit.contract.task import DataInfo
from sslkit.encoders.recipe import Recipe, recipe_for
from sslkit.engine.optimizer import lr_factor
from sslkit.engine.parallel import ALONE, World
from sslkit.engine.precision import Machine, choose_machine
from sslkit.registry import load_modality
from sslkit.specs.train import PretrainSpec, TrainSpec

DEFAULT_EPOCHS = 100


@dataclass(frozen=True)
class Settings:
    """Resolved settings of a training run."""

    spec: TrainSpec  # nothing `auto` is left in what changes the result
    source: Source
    machine: Machine
    workers: int
    reasons: dict[str, str]  # what `auto` became and why, by flag
    encodes: str  # modality of the encoder

    @property
    def data(self) -> DataInfo:
        """Return what a task knows about the data."""
        return replace(self.source.info, batch_size=self.spec.batch_size)

    @property
    def recipe(self) -> Recipe:
        """Return the recipe of the encoder."""
        spec = self.spec
        of_data = {name: str(value) for name, value in self.source.encoder_options(self.encodes).items()}
        options = {**of_data, **spec.encoder_option}
        return recipe_for(spec.encoder, self.data.size, self.data.channels, options, spec.pretrained)

    @property
    def steps_per_epoch(self) -> int:
        """Return the full batches in one pass."""
        return self.data.samples // self.spec.batch_size


def resolve_settings(
    spec: TrainSpec, source: Source, encodes: str, requires: tuple[str, ...], world: World = ALONE
) -> Settings:
    """Settle every `auto` of a spec; raises SslkitError for what this machine or data can't do."""
    shard = isinstance(spec, PretrainSpec) and spec.shard
    machine = choose_machine(spec.device, spec.precision, spec.compile, spec.sync_batchnorm, world, shard)
    reasons = dict(machine.reasons)
    # A run goes on elsewhere as it began; where it runs is not part of it.
    values: dict[str, Any] = {
        "precision": machine.precision,
        "compile": "on" if machine.compile else "off",
        "sync_batchnorm": "on" if machine.sync_batchnorm else "off",
    }
    for name, (value, why) in source.resolved.items():
        text = ", ".join(f"{key}={inner}" for key, inner in value.items()) if isinstance(value, dict) else value
        reasons[name] = f"{text}: {why}"
        if name != "cache" or value == "compact":  # other caches do not change what training sees
            values[name] = value
    if spec.encoder == "auto":
        modality = load_modality(encodes)
        name, why = modality.default_encoder(source.info, requires, machine.device.type == "cpu")
        values["encoder"], reasons["encoder"] = name, f"{name}: {why}"
    if spec.epochs == "auto" and spec.steps is None and spec.minutes is None:
        values["epochs"] = DEFAULT_EPOCHS
        reasons["epochs"] = f"{DEFAULT_EPOCHS}: usual for pretraining; --minutes sets a time instead"
    if spec.steps is not None or spec.minutes is not None:
        values["epochs"] = "auto"  # one length is recorded
    spec = spec.updated(values)
    if source.info.samples < 2:
        raise SslkitError(
            f"{source.location} contains only 1 {source.noun.removesuffix('s')}; at least 2 are needed", flag="data"
        )
    if source.info.samples < spec.batch_size:
        raise SslkitError(
            f"{source.location} has only {source.info.samples} {source.noun}, fewer than a batch of {spec.batch_size}",
            f"use {source.info.samples} or less",
            flag="batch_size",
        )
    if spec.batch_size % world.size:
        raise SslkitError(
            f"{spec.batch_size} does not divide among {world.size} processes",
            f"give a multiple of {world.size}",
            flag="batch_size",
        )
    if spec.lr_scale != "none":
        rule = f"{spec.lr:g} × {'√' if spec.lr_scale == 'sqrt' else ''}({spec.batch_size} / 256)"
        reasons["lr"] = f"{spec.lr * lr_factor(spec):g}: {rule}, by --lr-scale {spec.lr_scale}"
    workers, why = source.workers(spec.workers)
    reasons["workers"] = f"{workers}: {why}"
    return Settings(spec, source, machine, workers, reasons, encodes)


_SHOWN = (
    "label_share",
    "labeled_in_batch",
    "encoder",
    "encoder_option",
    "epochs",
    "lr",
    "device",
    "processes",
    "precision",
    "compile",
    "sync_batchnorm",
    "shard",
    "workers",
    "cache",
)


def show_settings(settings: Settings, title: str, out: Path, whole: bool = True) -> None:
    """Print what is about to run and, if `whole`, the reason for each choice that was made for the user."""
    say(f"{title} on {settings.data.samples:,} {settings.source.noun} from {settings.source.location} -> {out}", style="bold")
    for flag in ("size", *(name for name in settings.source.resolved if name not in ("size", *_SHOWN)), *_SHOWN):
        if whole and flag in settings.reasons:
            say(f"  {flag.replace('_', '-'):<14} {settings.reasons[flag]}")
