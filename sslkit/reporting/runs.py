"""What a run folder says: settings, logged lines, results, and the command that repeats it."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sslkit.contract.errors import SslkitError, flag_name
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.run_folder import METRICS, MODEL, RESULTS, read_json_lines, read_spec
from sslkit.evaluation.models import weights_hash
from sslkit.reporting.numbers import protocol_of
from sslkit.specs.train import FinetuneSpec, PretrainSpec
from sslkit.tasks.load import load_task


@dataclass(frozen=True)
class RunRecord:
    """Hold what a run folder says."""

    path: Path
    name: str
    spec: dict[str, Any]
    lines: list[dict[str, Any]]
    checkpoint: Checkpoint
    weights: str
    results: list[dict[str, Any]]  # of these weights; of what was measured in one way twice, the last

    @classmethod
    def read(cls, path: Path, name: str, allowed: str | None) -> "RunRecord":
        """Read a run folder; raises SslkitError if it holds no run, or none that took a step."""
        spec = read_spec(path)
        if not (path / MODEL).exists():
            raise SslkitError(f"{path} has no checkpoint", "the run did not get so far")
        checkpoint = read_model(path / MODEL)
        weights = weights_hash(checkpoint.build_encoder(allowed))
        found = [result for result in read_json_lines(path / RESULTS) if result.get("weights") == weights]
        newest = {json.dumps([protocol_of(result), result.get("settings"), result.get("data")]): result for result in found}
        return cls(path, name, spec, read_json_lines(path / METRICS), checkpoint, weights, list(newest.values()))

    @property
    def minutes(self) -> float | None:
        """Return the minutes from the first step to the last, with all that belongs to them."""
        return self.lines[-1]["seconds"] / 60 if self.lines and "seconds" in self.lines[-1] else None

    @property
    def command(self) -> str:
        """Return the command that repeats it: every setting that is not the default."""
        command, model = ("pretrain", PretrainSpec) if "task" in self.spec else ("finetune", FinetuneSpec)
        usual = {name: field.get_default(call_default_factory=True) for name, field in model.model_fields.items()}
        words = ["sslkit", command, *([self.spec["task"]] if command == "pretrain" else [])]
        own: dict[str, Any] = {}
        if command == "pretrain":
            try:
                task = load_task(self.spec["task"])
            except SslkitError:  # its package is not here any more: every option is said
                pass
            else:
                usual |= task.defaults
                own = {name: field.get_default(call_default_factory=True) for name, field in task.Options.model_fields.items()}
        left_out = {"task", "options", "resume", "extend_to", *(["minutes"] if self.spec.get("steps") else [])}
        for name, value in self.spec.items():
            if name not in left_out and value is not None and value != usual.get(name):
                words += _flags(name, value)
        for name, value in self.spec.get("options", {}).items():
            if value is not None and value != own.get(name):
                words += _flags(name.replace("__", "."), value)
        return shlex.join(words)


def names_of(folders: list[Path]) -> list[str]:
    """Return the last parts of the folders' paths, as many as it takes to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise SslkitError("one of the runs is given twice", "name each once")


def _flags(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command."""
    if isinstance(value, bool):
        return [flag_name(name) if value else f"--no-{flag_name(name)[2:]}"]
    if isinstance(value, dict):
        return [word for key, one in value.items() for word in (flag_name(name), f"{key}={one}")]
    if isinstance(value, list):
        return [word for one in value for word in (flag_name(name), str(one))]
    return [flag_name(name), str(value)]
