"""The contents of a run folder: settings, logged lines, results, and the command that repeats it."""

import json
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslkit import registry
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.options import flat_fields
from sslkit.contract.result import Result
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.curves import Curve, read_curves
from sslkit.engine.run_folder import METRICS, MODEL, RESULTS, read_json_lines, read_spec
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.notes import read_results
from sslkit.specs.train import FinetuneSpec, PretrainSpec
from sslkit.tasks.load import load_task


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder."""

    path: Path
    name: str
    spec: dict[str, Any]
    lines: list[dict[str, Any]]
    checkpoint: Checkpoint
    weights: str
    parameters: int  # of the encoder
    curves: dict[str, Curve]  # of the logged lines, by name
    results: list[Result]  # of these weights, of each protocol, settings and data the newest; the newest of all is the last

    @classmethod
    def read(cls, path: Path, name: str, allowed: str | None) -> "RunRecord":
        """Read a run folder; raises SslkitError if it holds no run, or none that took a step."""
        spec = read_spec(path)
        if not (path / MODEL).exists():
            raise SslkitError(f"{path} has no checkpoint", "the run stopped before writing one")
        checkpoint = read_model(path / MODEL)
        encoder = checkpoint.build_encoder(allowed)
        weights, parameters = weights_hash(encoder), sum(value.numel() for value in encoder.parameters())
        newest: dict[str, Result] = {}
        for result in read_results(path / RESULTS):
            if result.weights == weights:
                key = json.dumps([result.title, result.settings, asdict(result.data)])
                newest.pop(key, None)  # so that it comes last
                newest[key] = result
        lines = read_json_lines(path / METRICS)
        curves = read_curves(path, lines)
        return cls(path, name, spec, lines, checkpoint, weights, parameters, curves, list(newest.values()))

    @property
    def minutes(self) -> float | None:
        """Return the minutes from the first step to the last, with all that belongs to them."""
        return self.lines[-1]["seconds"] / 60 if self.lines and "seconds" in self.lines[-1] else None

    @property
    def settings(self) -> dict[str, Any]:
        """Return the spec by flag: data options beside the others."""
        tables = {
            name: table for name, table in self.spec.items() if name in registry.data_options() and isinstance(table, dict)
        }
        settings = {name: value for name, value in self.spec.items() if name not in tables}
        return {**settings, **{name: value for table in tables.values() for name, value in table.items()}}

    @property
    def command(self) -> str:
        """Return the command that repeats it: every setting that is not the default."""
        command, model = ("pretrain", PretrainSpec) if "task" in self.spec else ("finetune", FinetuneSpec)
        defaults = {name: field.get_default(call_default_factory=True) for name, field in flat_fields(model).items()}
        words = ["sslkit", command, *([self.spec["task"]] if command == "pretrain" else [])]
        task_defaults: dict[str, Any] = {}
        if command == "pretrain":
            try:
                task = load_task(self.spec["task"])
            except SslkitError:  # its package is gone: every option is written
                pass
            else:
                defaults |= task.defaults
                task_defaults = {
                    name: field.get_default(call_default_factory=True) for name, field in task.Options.model_fields.items()
                }
        left_out = {"task", "options", "resume", "extend_to", *(["minutes", "epochs"] if self.spec.get("steps") else [])}
        for name, value in self.settings.items():
            if name not in left_out and value is not None and value != defaults.get(name):
                words += _flags(name, value)
        for name, value in self.spec.get("options", {}).items():
            if value is not None and value != task_defaults.get(name):
                words += _flags(name.replace("__", "."), value)
        return shlex.join(words)


def names_of(folders: list[Path]) -> list[str]:
    """Return the last parts of the folders' paths, as many as it takes to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise SslkitError("a run is named twice", "name each once")


def _flags(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command."""
    if isinstance(value, bool):
        return [flag_name(name) if value else f"--no-{flag_name(name)[2:]}"]
    if isinstance(value, dict):
        return [word for key, entry in value.items() for word in (flag_name(name), f"{key}={entry}")]
    if isinstance(value, list):
        return [word for entry in value for word in (flag_name(name), str(entry))]
    return [flag_name(name), str(value)]
