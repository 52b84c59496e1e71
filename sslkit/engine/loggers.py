"""Loggers: where the metrics of a run are written. Each is an entry point of `sslkit.loggers`, named as `--log` does."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from sslkit.contract.errors import SslkitError
from sslkit.engine.run_folder import METRICS, append_json, read_json_lines, read_spec
from sslkit.extras import load_extra
from sslkit.files import write_atomically
from sslkit.registry import LOGGERS, find, load


class Logger(Protocol):
    """Write the metrics of a run somewhere.

    It is built with the run folder before that exists, so the constructor must not write; it raises SslkitError if a
    package is missing. Whatever it keeps in the run folder lies in a subfolder named like its entry point. An OSError
    from `rewind` or `log` ends the run with one line. `settings_of` the folder, from `rewind` on, are those of the run.
    """

    def __init__(self, folder: Path) -> None: ...

    def rewind(self, step: int) -> None:
        """Start writing, and drop what was logged from `step` on, which a resumed run logs again."""

    def log(self, line: dict[str, Any]) -> None:
        """Write one line: numbers by name, `step` and `epoch` among them, and `alarms`, a list of texts, if there are any."""

    def close(self, failed: bool) -> None:
        """Finish writing; `failed` if the run ended early: by an error, or by a signal to stop."""


class FileLogger:
    """Write `metrics.jsonl`, one JSON object per line; every run has it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / METRICS

    def rewind(self, step: int) -> None:
        """Drop the lines from `step` on."""
        if self.file.exists():
            lines = [line for line in read_json_lines(self.file) if line["step"] < step]
            with write_atomically(self.file, new_folder=False) as stream:
                stream.writelines(f"{json.dumps(line)}\n".encode() for line in lines)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line."""
        append_json(self.file, line)

    def close(self, failed: bool) -> None:
        """Do nothing: every line is on its own."""


class TensorBoardLogger:
    """Write TensorBoard event files to the folder `tensorboard` of the run."""

    def __init__(self, folder: Path) -> None:
        load_extra("tensorboard", "tensorboard", "--log tensorboard")
        self.folder = folder
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        """Open the event file, with the settings; TensorBoard itself hides what was logged from `step` on."""
        from torch.utils.tensorboard import SummaryWriter  # an optional dependency

        self._writer = SummaryWriter(str(self.folder / "tensorboard"), purge_step=step)
        rows = "\n".join(f"| {name} | {value} |" for name, value in settings_of(self.folder).items())
        self._writer.add_text("settings", f"| setting | value |\n|---|---|\n{rows}", step)

    def log(self, line: dict[str, Any]) -> None:
        """Add the numbers of a line as scalars."""
        for name, value in numbers(line).items():
            self._writer.add_scalar(name, value, line["step"])

    def close(self, failed: bool) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def load_loggers(names: list[str]) -> list[type[Logger]]:
    """Return the logger classes of `--log`, each once, the file first; raises SslkitError for an unknown name."""
    try:
        return [load(find(LOGGERS, name)) for name in dict.fromkeys(["file", *names])]
    except SslkitError as error:
        error.flags = ("log",)
        raise


def build_loggers(names: list[str], folder: Path) -> list[Logger]:
    """Return the loggers of a run: always the file, and those that `--log` names."""
    return [logger(folder) for logger in load_loggers(names)]


def numbers(line: dict[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a line by name, without `step`: what every logger writes, under the same keys."""
    return {
        name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, int | float) and math.isfinite(value)
    }


def lines_before(folder: Path, step: int) -> list[dict[str, Any]]:
    """Return the lines of `metrics.jsonl` before `step`, for a logger that cannot drop what it has."""
    return [line for line in read_json_lines(folder / METRICS) if line["step"] < step]


def settings_of(folder: Path) -> dict[str, Any]:
    """Return the recorded settings of a run; those in tables have a point in their names: `image.size`."""
    return dict(_flat(read_spec(folder)))


def _flat(settings: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
