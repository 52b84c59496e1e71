"""What the campaign counts, and the processes it breaks."""

import os
import signal
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file

from sslkit.cli.app import main
from sslkit.engine.checkpoint import read_model
from sslkit.engine.resume_file import read_resume
from sslkit.image.digits import write_digits

TINY = ["--encoder", "resnet_micro", "--encoder-option", "width=8", "--size", "16", "--batch-size", "16", "--health-every", "0"]


@dataclass
class Promise:
    """Count how often something was promised, and kept."""

    done: str
    promised: str
    times: int = 0
    kept: int = 0
    notes: list[str] = field(default_factory=list)  # what was seen where it was not kept

    def check(self, kept: bool, note: str) -> None:
        """Count one case."""
        self.times += 1
        self.kept += bool(kept)
        if not kept:
            self.notes.append(note)


def digits(folder: Path) -> Path:
    """Write the images of `sslkit demo` and return the folder."""
    write_digits(folder, seed=0)
    return folder


class Process:
    """Run a command in a process of its own; a fork of this one, which has imported torch already."""

    def __init__(self, *words: object, limits: dict[int, int] | None = None) -> None:
        arguments = [str(word) for word in words]
        # Not beside the cache, which may lie on a disk that is full: a failing flush would unwind the fork.
        self.log = Path(tempfile.gettempdir(), f"sslkit-faults-{os.getpid()}.txt")
        self.pid = os.fork()
        if self.pid == 0:
            import resource

            os.setpgid(0, 0)  # its workers are killed with it
            for kind, limit in (limits or {}).items():
                resource.setrlimit(kind, (limit, limit))
            into = os.open(self.log, os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
            os.dup2(into, 1)
            os.dup2(into, 2)
            code = 70  # of anything that is not an exit
            try:
                main(arguments)
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                if code == 70:
                    traceback.print_exc()
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        # Here too, as shells do: whoever is first, the group is there when this returns.
        os.setpgid(self.pid, self.pid)

    def wait(self, seconds: float | None = None) -> int | None:
        """Return the exit code, below 0 that of a signal; None if it is running after so many seconds."""
        if seconds is None:
            return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.002)
        return None

    def signal(self, number: int) -> None:
        """Send a signal to the process and its workers."""
        os.killpg(self.pid, number)

    def kill(self) -> None:
        """End it at once, and wait until its workers are gone too."""
        self.signal(signal.SIGKILL)
        os.waitpid(self.pid, 0)

    @property
    def errors(self) -> list[str]:
        """Return what it printed in lines that begin with error."""
        return [line for line in self.log.read_text(errors="replace").splitlines() if line.startswith("error: ")]


def ran(*words: object, limits: dict[int, int] | None = None) -> tuple[int, list[str]]:
    """Run a command and return its exit code and its lines of error."""
    process = Process(*words, limits=limits)
    code = process.wait()
    assert code is not None
    return code, process.errors


def step_of(run: Path) -> int:
    """Return the step of the checkpoint in a run folder, 0 without one; raises SslkitError if it cannot be read."""
    if not (run / "resume.pt").exists():
        return 0
    step: int = read_resume(run / "resume.pt", torch.device("cpu"))["step"]
    if (run / "model.safetensors").exists():
        read_model(run / "model.safetensors")
    return step


def same_weights(first_run: Path, second_run: Path) -> bool:
    """Tell whether two runs ended with the same bits."""
    first, second = (load_file(run / "model.safetensors") for run in (first_run, second_run))
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def left_over(*folders: Path) -> list[str]:
    """Return temporary files that were left behind."""
    return [str(file) for folder in folders for file in folder.rglob("*.tmp*")]
