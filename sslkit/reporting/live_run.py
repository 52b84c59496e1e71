"""Follow run folders while runs write to them: which there are, what they have logged since, and how they do.

Nothing here imports torch, writes, or takes the lock of a run.
"""

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sslkit.contract.errors import SslkitError
from sslkit.engine.curves import read_curves, read_steps
from sslkit.engine.model_header import read_metadata
from sslkit.engine.run_folder import METRICS, MODEL, PREVIEWS, RESULTS, SPEC, TRAINING, holds_run, read_spec
from sslkit.evaluation.notes import read_results
from sslkit.reporting.previews import preview_steps
from sslkit.reporting.training_charts import plan_charts

_DEPTH, _MOST = 3, 200  # how deep below a folder runs are looked for, and how many are listed
_ENTRIES = 10_000  # of a folder in which runs are looked for: one of images may have millions
_CHUNK = 2**20  # bytes read at once; a longer line is no line of ours
_SUMMARIZED = (SPEC, TRAINING, METRICS, MODEL, RESULTS, PREVIEWS)  # what a summary is read from
_PATIENCE = 60  # seconds without a line until a run counts as silent, or ten times what its lines take


def find_runs(folder: Path) -> dict[str, Path]:
    """Return the runs in a folder by name, the one written to last first: the folder itself, or what lies below it."""
    runs: dict[str, Path] = {folder.resolve().name: folder} if _is_run(folder) else {}
    level = [] if _has_log(folder) else [folder]
    for _ in range(_DEPTH):
        children = [child for parent in level for child in _subfolders(parent)]
        runs |= {child.relative_to(folder).as_posix(): child for child in children if _is_run(child)}
        level = [child for child in children if not _has_log(child)]
    newest = sorted(runs, key=lambda name: -_modified_at(runs[name]))
    return {name: runs[name] for name in newest[:_MOST]}


def _is_run(folder: Path) -> bool:
    try:
        return holds_run(folder)
    except OSError:  # a folder that may not be searched
        return False


def _has_log(folder: Path) -> bool:
    return os.path.exists(folder / METRICS)  # Path.exists raises PermissionError


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            few = islice(entries, _ENTRIES)
            return [Path(entry) for entry in few if entry.is_dir(follow_symlinks=False) and entry.name != PREVIEWS]
    except OSError:
        return []


def _modified_at(run: Path) -> float:
    try:
        return (run / METRICS).stat().st_mtime
    except OSError:
        return 0.0


@dataclass
class LogFollower:
    """Read `metrics.jsonl` from where it was left; its `position` names that place to a reader who comes back.

    A position is a byte offset and the number of the file, since a run that is resumed writes a new one.
    """

    file: Path
    position: str = ""
    restarted: bool = field(default=False, init=False)  # whether what was read before the last `read` no longer counts

    def read(self) -> list[dict[str, Any]]:
        """Return the lines that were completed since; a half-written one waits, and one that is not JSON is skipped."""
        self.restarted = False
        try:
            with open(self.file, "rb") as stream:
                status = os.fstat(stream.fileno())
                offset, _, number = self.position.partition("-")
                start = int(offset) if offset.isdecimal() else 0
                if number != str(status.st_ino) or start > status.st_size:
                    self.restarted, start = self.position != "", 0
                stream.seek(start)
                content = stream.read(_CHUNK)
        except OSError:  # not written yet
            self.restarted, self.position = self.position != "", ""
            return []
        end = content.rfind(b"\n") + 1
        if end == 0 and len(content) == _CHUNK:
            end = _CHUNK
        self.position = f"{start + end}-{status.st_ino}"
        return [line for text in content[:end].splitlines() if (line := _parse(text)) is not None]


def _parse(text: bytes) -> dict[str, Any] | None:
    """Return the numbers and alarms of a line, None if it has no step."""
    try:
        line = json.loads(text)
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            return None
        kept = {name: value for name, value in line.items() if isinstance(value, int | float) and math.isfinite(value)}
    except (ValueError, RecursionError, OverflowError):
        return None
    alarms = line.get("alarms")
    return {**kept, **({"alarms": [str(alarm) for alarm in alarms]} if isinstance(alarms, list) else {})}


@dataclass
class SummaryReader:
    """Tell what a list of runs says about one; its files are read again when they have changed."""

    name: str
    run: Path

    def __post_init__(self) -> None:
        self._stamps: list[tuple[int, int] | None] = []
        self._summary: dict[str, Any] = {}
        self._modified_at = self._patience = 0.0

    def read(self) -> dict[str, Any]:
        """Return task, data, progress, state, newest result; the state is "unreadable" if a file is not as it should be."""
        stamps = [_stamp(self.run / name) for name in _SUMMARIZED]
        if stamps != self._stamps:
            try:
                self._summary = self._read()
            except (OSError, ValueError, TypeError, KeyError):
                self._summary = {"name": self.name, "state": "unreadable", "previews": []}
            self._stamps = stamps
        silence = time.time() - self._modified_at
        if self._summary["state"] != "running" or silence <= self._patience:
            return self._summary
        return {**self._summary, "state": "silent", "silent_minutes": round(silence / 60)}

    def _read(self) -> dict[str, Any]:
        """Return the summary of a run that is not silent."""
        run = self.run
        try:
            spec = read_spec(run)
        except (SslkitError, OSError):
            spec = {}
        self._modified_at = _modified_at(run)
        last, seconds_per_line = _last_line(run / METRICS)
        self._patience = max(_PATIENCE, 10 * seconds_per_line)
        step = last["step"] + 1 if last else 0
        steps = _steps(run, spec, step)
        results = read_results(run / RESULTS)
        newest = results[-1] if results else None
        return {
            "name": self.name,
            "task": str(spec.get("task") or "finetune") if spec else "",
            "encoder": str(spec.get("encoder", "")),
            "data": Path(str(spec.get("data") or "")).name,
            "batch": spec.get("batch_size"),
            "step": step,
            "steps": steps,
            "state": "waiting" if last is None else "finished" if step == steps else "running",
            "left": _seconds_left(last, step, steps),
            "result": "" if newest is None else f"{newest.title}: {newest.headline.text()} {newest.headline.name}",
            "sentence": "" if newest is None else next((finding.text for finding in newest.findings), ""),
            "previews": preview_steps(run),
        }


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return what changes when a file is written to, None if there is none."""
    try:
        status = file.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size


def describe_charts(names: Mapping[str, None], run: Path) -> list[dict[str, Any]]:
    """Return the charts of numbers by name, as a script draws them."""
    return [chart.to_json() for chart in plan_charts(read_curves(run, names))]


def _last_line(file: Path) -> tuple[dict[str, Any] | None, float]:
    """Return the last complete line of a log, and the seconds between the last two."""
    try:
        with open(file, "rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - 2**16))
            content = stream.read()
    except OSError:
        return None, 0.0
    complete = content[: content.rfind(b"\n") + 1].splitlines()[-2:]
    lines = [line for text in complete if (line := _parse(text)) is not None]
    if not lines:
        return None, 0.0
    return lines[-1], max(0.0, lines[-1].get("seconds", 0.0) - lines[0].get("seconds", 0.0))


def _seconds_left(last: dict[str, Any] | None, step: int, steps: int | None) -> int | None:
    if last is None or steps is None or "seconds" not in last or not 0 < step < steps:
        return None
    seconds_per_step: float = last["seconds"] / step
    return round(seconds_per_step * (steps - step))


def _steps(run: Path, spec: dict[str, Any], step: int) -> int | None:
    """Return where a run ends: as it recorded, else as its checkpoint or its spec says; None if it is past that."""
    steps: Any = read_steps(run)
    if steps is None:
        steps = read_metadata(run / MODEL).get("steps", spec.get("steps"))
    return steps if isinstance(steps, int) and steps >= step else None
