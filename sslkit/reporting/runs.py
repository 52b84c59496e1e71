"""The contents of a run folder: settings, logged lines, results, and the command that repeats it."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.result import Result
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.curves import Curve, read_curves
from sslkit.engine.run_command import run_command
from sslkit.engine.run_folder import METRICS, MODEL, RESULTS, read_json_lines, read_spec
from sslkit.evaluation.models import weights_hash
from sslkit.evaluation.notes import read_results


@dataclass(frozen=True)
class RunRecord:
    """The contents of a run folder."""

    path: Path
    name: str
    spec: dict[str, Any]
    lines: list[dict[str, Any]]
    checkpoint: Checkpoint
    encoder: Encoder
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
        curves = read_curves(path, dict.fromkeys(name for line in lines for name in line))
        return cls(path, name, spec, lines, checkpoint, encoder, weights, parameters, curves, list(newest.values()))

    @property
    def minutes(self) -> float | None:
        """Return the minutes from the first step to the last, with all that belongs to them."""
        return self.lines[-1]["seconds"] / 60 if self.lines and "seconds" in self.lines[-1] else None

    @property
    def command(self) -> str:
        """Return the command that repeats it: every setting that is not the default."""
        return run_command(self.spec)


def names_of(folders: list[Path]) -> list[str]:
    """Return the last parts of the folders' paths, as many as it takes to tell them apart."""
    for length in range(1, max(len(folder.parts) for folder in folders) + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    raise SslkitError("a run is named twice", "name each once")
