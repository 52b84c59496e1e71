"""The run folder: what lies in it, who may write to it, and how it is named."""

import csv
import json
import math
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from filelock import FileLock, Timeout

from sslkit.console import say
from sslkit.contract.errors import RunFailedError, SslkitError
from sslkit.files import write_atomically

MODEL, RESUME, SPEC, METRICS, RESULTS, BROKEN, PREVIEWS = (
    "model.safetensors",
    "resume.pt",
    "spec.json",
    "metrics.jsonl",
    "results.jsonl",
    "broken.csv",
    "previews",
)


def choose_out(out: str | None, name: str, resume: bool) -> Path:
    """Return the folder of a run: as given, or `runs/NAME`, or the next free `runs/NAME-2`.

    A given folder that holds a run is an SslkitError unless it is to be resumed.
    """
    if out is not None:
        folder = Path(out)
        if holds_run(folder) and not resume:
            raise SslkitError(f"{folder} holds a run", "go on with it by --resume, or choose another folder", flag="out")
        if folder.exists() and not folder.is_dir():
            raise SslkitError(f"{folder} is a file", "give a folder", flag="out")
        return folder
    folder, number = Path("runs", name), 2
    while holds_run(folder) and not resume:
        folder, number = Path("runs", f"{name}-{number}"), number + 1
    return folder


def holds_run(folder: Path) -> bool:
    """Tell whether a folder holds a run."""
    return (folder / SPEC).exists() or (folder / RESUME).exists()


def read_spec(folder: Path) -> dict[str, Any]:
    """Return the recorded spec of a run; raises SslkitError if it is not there or not JSON."""
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
    """Own a run folder while the run lasts: locked, and as it was before if the run never got anywhere.

    Of several processes only one writes; to the others the folder is something to read. What cannot be written is an
    SslkitError before the first step, and RunFailedError once it was `started`.
    """

    def __init__(self, folder: Path, writes: bool = True, board: bool = False) -> None:
        if board and find_spec("tensorboard") is None:
            raise SslkitError("tensorboard is not installed", "pip install 'sslkit[tensorboard]'", flag="log")
        self.path, self.writes, self._shows = folder, writes, board
        self._board: Any = None
        self._fresh, self._held = not folder.exists(), holds_run(folder)
        self._lock = FileLock(folder / "lock")
        self._told: set[str] = set()
        self.started = False

    def __enter__(self) -> Self:
        if not self.writes:
            return self
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock.acquire(timeout=0)
        except Timeout as error:
            raise SslkitError(
                f"another process is working in {self.path}", "wait for it or use another folder", flag="out"
            ) from error
        except OSError as error:
            raise SslkitError(f"cannot write to {self.path}: {error.strerror}", flag="out") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if not self.writes:
            return
        if self._board is not None:
            self._board.close()
        self._lock.release()
        if kind is not None and not self._held and not self.file(RESUME).exists() and not self.file(METRICS).exists():
            for name in (SPEC, BROKEN, "lock"):
                self.file(name).unlink(missing_ok=True)
            for name in (PREVIEWS, "tensorboard"):
                shutil.rmtree(self.file(name), ignore_errors=True)
            if self._fresh:
                with suppress(OSError):  # somebody else put something there, or removed it
                    self.path.rmdir()

    def file(self, name: str) -> Path:
        """Return the path of a file in the folder."""
        return self.path / name

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say in one line what the disk would not do.

        Nothing in here may make the folder anew if it is gone: half a run would be in it.
        """
        try:
            yield
        except OSError as error:
            reason = f"cannot write to {self.path}: {error.strerror if self.path.is_dir() else 'the folder is gone'}"
            if self.started:
                hint = "--resume goes on from the last checkpoint" if self.file(RESUME).exists() else ""
                raise RunFailedError(reason, hint) from error
            raise SslkitError(f"{reason}", flag="out") from error

    def write_spec(self, spec: dict[str, Any]) -> None:
        """Record what was run."""
        if not self.writes:
            return
        with self.writing(), write_atomically(self.file(SPEC), new_folder=False) as stream:
            stream.write((json.dumps(spec, indent=2) + "\n").encode())

    def log(self, line: dict[str, Any]) -> None:
        """Add a line to metrics.jsonl, and its numbers to TensorBoard, if that was asked for."""
        if self.writes:
            with self.writing():
                append_json(self.file(METRICS), line)
        if self._board is not None:
            for name, value in line.items():
                if isinstance(value, int | float) and name != "step":
                    self._board.add_scalar(name, value, line["step"])

    def last_loss(self) -> float | None:
        """Return the loss logged last."""
        lines = read_json_lines(self.file(METRICS))
        return float(lines[-1]["loss"]) if lines else None

    def rewind(self, step: int) -> None:
        """Drop the logged lines from `step` on, which a resumed run will write again; TensorBoard does so by itself."""
        if self.writes and self.file(METRICS).exists():
            kept = [line for line in read_json_lines(self.file(METRICS)) if line["step"] < step]
            with self.writing(), write_atomically(self.file(METRICS), new_folder=False) as stream:
                stream.writelines(f"{json.dumps(line)}\n".encode() for line in kept)
        if self.writes and self._shows:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(self.path / "tensorboard"), purge_step=step)

    def report_broken(self, broken: Iterable[tuple[str, str]]) -> int:
        """Add (name, reason) of samples not yet in broken.csv and return how many were new."""
        if not self.writes:
            return 0
        if not self._told and self.file(BROKEN).exists():
            with open(self.file(BROKEN), newline="", encoding="utf-8", errors="surrogateescape") as stream:
                self._told = {row[0] for row in csv.reader(stream)}
        new = [(name, reason) for name, reason in dict(broken).items() if name not in self._told]
        if new:
            file = self.file(BROKEN)
            with self.writing(), open(file, "a", newline="", encoding="utf-8", errors="surrogateescape") as stream:
                writer = csv.writer(stream)
                if not self._told:
                    writer.writerow(["path", "reason"])
                writer.writerows(new)
            self._told.update(name for name, _ in new)
        return len(new)


def read_json_lines(file: Path) -> list[dict[str, Any]]:
    """Return the objects in the lines of a file, none if there is no file; a line that was cut off is left out."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        try:
            found.append(json.loads(line))
        except (json.JSONDecodeError, RecursionError):  # the process was killed while it wrote
            continue
    return found


def append_json(file: Path, line: dict[str, Any]) -> None:
    """Add one JSON object as a line to a file; numbers that are not finite (an fp16 overflow) become null."""
    finite = {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in line.items()}
    with open(file, "a", encoding="utf-8") as stream:
        stream.write(json.dumps(finite, allow_nan=False) + "\n")


def append_result(folder: Path, result: dict[str, Any]) -> None:
    """Add a result to a run's results.jsonl; nothing where there is no run."""
    if holds_run(folder):
        try:
            append_json(folder / RESULTS, result)
        except OSError as error:  # the number is there all the same
            say(f"the result is not kept: cannot write {folder / RESULTS}: {error.strerror}")
