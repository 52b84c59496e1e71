"""Loggers: where the metrics of a run are written. Each is an entry point of `sslkit.loggers`, named as `--log` does."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from sslkit.contract.errors import SslkitError
from sslkit.engine.run_folder import METRICS, append_json, read_json_lines
from sslkit.files import write_atomically
from sslkit.registry import LOGGERS, find, load


class Logger(Protocol):
    """Write the metrics of a run somewhere.

    It is built with the run folder before that exists, so the constructor must not write; it raises SslkitError if a
    package is missing. Whatever it keeps in the run folder lies in a subfolder named like its entry point. An OSError
    from `rewind` or `log` ends the run with one line.
    """

    def __init__(self, folder: Path) -> None: ...

    def rewind(self, step: int) -> None:
        """Start writing, and drop what was logged from `step` on, which a resumed run logs again."""

    def log(self, line: dict[str, Any]) -> None:
        """Write one line: numbers by name, `step` and `epoch` among them, and `alarms`, a list of texts, if there are any."""

    def close(self) -> None:
        """Finish writing."""


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

    def close(self) -> None:
        """Do nothing: every line is on its own."""


class TensorBoardLogger:
    """Write TensorBoard event files to the folder `tensorboard` of the run."""

    def __init__(self, folder: Path) -> None:
        if find_spec("tensorboard") is None:
            raise SslkitError("tensorboard is not installed", "pip install 'sslkit[tensorboard]'", flag="log")
        self.folder = folder / "tensorboard"
        self._writer: Any = None

    def rewind(self, step: int) -> None:
        """Open the event file; TensorBoard itself hides what was logged from `step` on."""
        from torch.utils.tensorboard import SummaryWriter  # an optional dependency

        self._writer = SummaryWriter(str(self.folder), purge_step=step)

    def log(self, line: dict[str, Any]) -> None:
        """Add the numbers of a line as scalars."""
        for name, value in line.items():
            if isinstance(value, int | float) and name != "step":
                self._writer.add_scalar(name, value, line["step"])

    def close(self) -> None:
        """Close the event file."""
        if self._writer is not None:
            self._writer.close()


def load_logger(name: str) -> type[Logger]:
    """Return the logger class of `--log`; raises SslkitError for an unknown name."""
    try:
        logger: type[Logger] = load(find(LOGGERS, name))
    except SslkitError as error:
        error.flags = ("log",)
        raise
    return logger


def build_loggers(name: str, folder: Path) -> list[Logger]:
    """Return the loggers of a run: always the file, and the one that `--log` names."""
    loggers: list[Logger] = [FileLogger(folder)]
    if name != "file":
        loggers.append(load_logger(name)(folder))
    return loggers
