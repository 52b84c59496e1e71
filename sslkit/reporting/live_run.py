"""Follow run folders while runs write to them: which there are, what they have logged since, and how they do.

Nothing here imports torch, writes, or takes the lock of a run.
"""

import json
import math
import os
import struct
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from sslkit.contract.errors import SslkitError
from sslkit.engine.curves import describe_curves, read_chance
from sslkit.engine.run_folder import METRICS, MODEL, PREVIEWS, RESULTS, holds_run, read_spec
from sslkit.evaluation.notes import read_results
from sslkit.reporting.training_charts import plan_charts

_DEPTH, _MOST = 3, 200  # how deep below a folder runs are looked for, and how many are listed
_ENTRIES = 10_000  # of a folder in which runs are looked for: one of images may have millions
_CHUNK = 2**20  # bytes read at once; a longer line is no line of ours
_HEADER, _PICTURE = 2**23, 2**25  # bytes at most
_PATIENCE = 60  # seconds without a line until a run counts as silent, or ten times what its lines take


def find_runs(folder: Path) -> dict[str, Path]:
    """Return the runs in a folder by name, the one written to last first: the folder itself, or what lies below it."""
    runs: dict[str, Path] = {folder.resolve().name: folder} if holds_run(folder) else {}
    level = [] if (folder / METRICS).exists() else [folder]
    for _ in range(_DEPTH):
        children = [child for parent in level for child in _subfolders(parent)]
        runs |= {child.relative_to(folder).as_posix(): child for child in children if holds_run(child)}
        level = [child for child in children if not (child / METRICS).exists()]
    newest = sorted(runs, key=lambda name: -_written_at(runs[name]))
    return {name: runs[name] for name in newest[:_MOST]}


def _subfolders(folder: Path) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            few = islice(entries, _ENTRIES)
            return [Path(entry) for entry in few if entry.is_dir(follow_symlinks=False) and entry.name != PREVIEWS]
    except OSError:
        return []


def _written_at(run: Path) -> float:
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
                status = self.file.stat()
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


def summarize(name: str, run: Path) -> dict[str, Any]:
    """Return what a list of runs says about one: task, data, progress, state, its newest result."""
    try:
        spec = read_spec(run)
    except (SslkitError, OSError):
        spec = {}
    last, seconds_per_line = _last_line(run / METRICS)
    step = last["step"] + 1 if last else 0
    steps = _steps(run, spec)
    silence = time.time() - _written_at(run) if last else None
    if steps is not None and step >= steps:
        state = "finished"
    elif silence is None:
        state = "waiting"
    else:
        state = "silent" if silence > max(_PATIENCE, 10 * seconds_per_line) else "running"
    results = read_results(run / RESULTS) if (run / RESULTS).is_file() else []
    newest = results[-1] if results else None
    sentence = "" if newest is None else next((finding.text for finding in newest.findings), "")
    return {
        "name": name,
        "task": str(spec.get("task") or "finetune") if spec else "",
        "encoder": str(spec.get("encoder", "")),
        "data": Path(str(spec.get("data") or "")).name,
        "batch": spec.get("batch_size"),
        "step": step,
        "steps": steps,
        "state": state,
        "silent_minutes": round(silence / 60) if silence is not None and state == "silent" else None,
        "left": _seconds_left(last, step, steps),
        "loss": last.get("loss") if last else None,
        "result": "" if newest is None else f"{newest.title}: {newest.headline.text()} {newest.headline.name}",
        "sentence": sentence,
        "previews": _preview_steps(run),
    }


def describe_charts(names: Mapping[str, None], run: Path) -> list[dict[str, Any]]:
    """Return the charts of numbers by name, as a script draws them."""
    return [chart.to_json() for chart in plan_charts(describe_curves(names, read_chance(run)))]


def read_preview(run: Path, step: int) -> bytes | None:
    """Return a picture of a run, None if it has none for this step or the file is no picture of its own."""
    file = run / PREVIEWS / f"step-{step}.png"
    try:
        if not file.resolve().is_relative_to(run.resolve()) or not file.is_file() or file.stat().st_size > _PICTURE:
            return None
        picture = file.read_bytes()
    except OSError:
        return None
    return picture if picture.startswith(b"\x89PNG\r\n\x1a\n") else None


def _preview_steps(run: Path) -> list[int]:
    try:
        numbers = [file.stem.partition("-")[2] for file in (run / PREVIEWS).glob("step-*.png")]
    except OSError:
        return []
    return sorted(int(number) for number in numbers if number.isdecimal())


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
    if last is None or steps is None or "seconds" not in last or step >= steps:
        return None
    seconds_per_step: float = last["seconds"] / step
    return round(seconds_per_step * (steps - step))


def _steps(run: Path, spec: dict[str, Any]) -> int | None:
    """Return where a run ends: as its checkpoint says, else its spec; None if neither does."""
    steps: Any = _model_metadata(run / MODEL).get("steps", spec.get("steps"))
    return steps if isinstance(steps, int) else None


def _model_metadata(file: Path) -> dict[str, Any]:
    """Return the description in a `model.safetensors`, without its tensors."""
    try:
        with open(file, "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(size, _HEADER)))
        metadata = json.loads(header["__metadata__"]["sslkit"])
    except (OSError, ValueError, KeyError, TypeError, struct.error, RecursionError):
        return {}
    return metadata if isinstance(metadata, dict) else {}
