"""The run folder: its name, its files, and the process that may write to it."""

import json
import math
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from sslkit import registry
from sslkit.console import say
from sslkit.contract.errors import RunFailedError, SslkitError
from sslkit.files import write_atomically

MODEL, RESUME, SPEC, TRAINING, METRICS, RESULTS, BROKEN, PREVIEWS = (
    "model.safetensors",
    "resume.pt",
    "spec.json",
    "training.json",
    "metrics.jsonl",
    "results.jsonl",
    "broken.csv",
    "previews",
)


def choose_out(out: str | None, name: str, resume: bool) -> Path:
    """Return the folder of a run: `out`, or `runs/NAME`, or the next free `runs/NAME-2`.

    Raises SslkitError if `out` holds a run that is not to be resumed, or files of another origin, or is a file.
    """
    if out is not None:
        folder = Path(out)
        if holds_run(folder) and not resume:
            raise SslkitError(
                f"{folder} already holds a run", "continue it with --resume, or choose another folder", flag="out"
            )
        if folder.exists() and not folder.is_dir():
            raise SslkitError(f"{folder} is a file", "expected a folder", flag="out")
        loggers = [logger for logger in registry.names(registry.LOGGERS) if logger != "file"]  # each has its subfolder
        written = (MODEL, METRICS, RESULTS, BROKEN, PREVIEWS, *loggers)
        foreign = [name for name in written if (folder / name).exists()]
        if foreign and not holds_run(folder):
            raise SslkitError(f"{folder} holds {foreign[0]}, but no run that wrote it", "choose another folder", flag="out")
        return folder
    folder, number = Path("runs", name), 2
    while holds_run(folder) and not resume:
        folder, number = Path("runs", f"{name}-{number}"), number + 1
    return folder


def holds_run(folder: Path) -> bool:
    """Return whether a folder holds a run."""
    return (folder / SPEC).exists() or (folder / RESUME).exists()


def read_spec(folder: Path) -> dict[str, Any]:
    """Return the recorded spec of a run; raises SslkitError if it is missing or not JSON."""
    try:
        spec = json.loads((folder / SPEC).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SslkitError(f"{folder} holds no run", f"{SPEC} is missing") from error
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise SslkitError(f"{folder / SPEC} is not JSON: {error}") from error
    if not isinstance(spec, dict):
        raise SslkitError(f"{folder / SPEC} is not a spec")
    return spec


class RunFolder:
    """A run folder, locked while the run lasts, and restored to what it was if the run never wrote a checkpoint or a metric.

    Only one of several processes writes; for the others the folder is read-only. What cannot be written is an SslkitError
    before the first step, and RunFailedError once the run has `started`. `removable` names subfolders of this run, such as
    those of loggers, that are removed with it if it never got anywhere, unless they were there before it.
    """

    def __init__(self, folder: Path, writes: bool = True, removable: tuple[str, ...] = ()) -> None:
        self.path, self.writes = folder, writes
        self._removable = [name for name in (PREVIEWS, *removable) if not (folder / name).exists()]
        self._existed, self._held_run = folder.exists(), holds_run(folder)
        self._lock = FileLock(folder / "lock")
        self.started = False

    def __enter__(self) -> Self:
        if not self.writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise SslkitError(
                f"another process is working in {self.path}", "wait for it, or use another folder", flag="out"
            ) from error
        except OSError as error:
            raise SslkitError(f"cannot write to {self.path}: {error.strerror}", flag="out") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.writes:
            return
        self._lock.release()
        if kind is not None and not self._held_run and not self.file(RESUME).exists() and not self.file(METRICS).exists():
            for name in (SPEC, TRAINING, BROKEN, "lock"):
                self.file(name).unlink(missing_ok=True)
            for name in self._removable:
                shutil.rmtree(self.file(name), ignore_errors=True)
            if not self._existed:
                with suppress(OSError):  # somebody else put something there, or removed it
                    self.path.rmdir()

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turn an OSError into an error of one line.

        Nothing in here may create the folder again if it is gone: it would hold half a run.
        """
        try:
            yield
        except OSError as error:
            reason = f"cannot write to {self.path}: {error.strerror if self.path.is_dir() else 'the folder is gone'}"
            if self.started:
                hint = f"--resume {'continues from the last checkpoint' if self.file(RESUME).exists() else 'starts it again'}"
                raise RunFailedError(reason, hint) from error
            raise SslkitError(reason, flag="out") from error

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """Write what the run records about itself: its spec, the chance levels of its metrics, where it ends."""
        if not self.writes:
            return
        with self.writing(), write_atomically(self.file(name), new_folder=False) as stream:
            stream.write((json.dumps(values, indent=2) + "\n").encode())


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects in the lines of a file, none if there is no file; a truncated line is skipped."""
    objects = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            objects.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError):  # the process was killed while writing
            continue
    return objects


def append_json(file: Path, line: dict[str, Any]) -> None:
    """Append one JSON object as a line to a file; numbers that are not finite (an fp16 overflow) become null."""
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(finite, allow_nan=False) + "\n")


def append_result(folder: Path, result: dict[str, Any]) -> None:
    """Append a result to a run's results.jsonl; do nothing where there is no run."""
    if holds_run(folder):
        try:
            append_json(folder / RESULTS, result)
        except OSError as error:  # the result was printed all the same
            say(f"the result was not saved: cannot write {folder / RESULTS}: {error.strerror}")
