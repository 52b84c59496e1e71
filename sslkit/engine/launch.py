"""`--devices`: start the processes of a run on this machine with torch's own process launcher, and wait for them."""

import json
import logging
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes

from sslkit.contract.errors import RunFailedError, RunInterruptedError, SslkitError
from sslkit.data.process_share import available_cores
from sslkit.engine.parallel import LOST, World, process_group
from sslkit.engine.signals import handle_signals
from sslkit.processes import CHECKPOINT_SIGNAL, ERRORS, FOLDER, RESULT, find_place
from sslkit.specs.train import TrainSpec

S = TypeVar("S", bound=TrainSpec)
R = TypeVar("R")

_ADDRESS = "127.0.0.1"


def run_on_devices(verb: str, spec: S, run: Callable[[S, World], R], read: Callable[[Any], R]) -> R:
    """Run a command in the processes that `--devices` asks for, else in this one and those of its job.

    `read` returns the result from its JSON.
    """
    count = process_count(spec)
    if count > 1:
        return read(launch(verb, spec, count))
    with process_group(spec.device) as world:
        return run(spec, world)


def process_count(spec: TrainSpec) -> int:
    """Return how many processes `--devices` starts; with 1 this process does the work itself.

    Raises SslkitError for more than there are GPUs, and where torchrun or srun has decided how many there are.
    """
    if "devices" not in spec.model_fields_set:
        return 1
    place = find_place(os.environ)
    if place.launcher:
        reason = f"{place.launcher} decides the number of processes, and started {place.size}"
        raise SslkitError(reason, "leave --devices out", flag="devices")
    gpus = torch.cuda.device_count() if spec.device in ("auto", "cuda") else 0
    if spec.devices == "auto":
        return max(1, gpus)
    if spec.devices > max(1, gpus) and spec.device in ("auto", "cuda"):
        raise SslkitError(
            f"{spec.devices} processes need a GPU each, and this machine has {gpus or 'none'}",
            "use --devices auto, or --device cpu",
            flag="devices",
        )
    return spec.devices


def launch(verb: str, spec: TrainSpec, count: int) -> Any:
    """Run a command in `count` processes and return its result as JSON has it.

    Signals are forwarded: the processes write a checkpoint before they end. Raises the error of the process that failed first.
    """
    with tempfile.TemporaryDirectory(prefix="sslkit-") as folder:
        file = Path(folder, "spec.json")
        file.write_text(spec.model_dump_json(exclude_unset=True, exclude={"devices"}), encoding="utf-8")
        arguments = ["-P", "-m", "sslkit", verb, "--spec", str(file)]  # -P: a folder sslkit here is not it
        if sys.excepthook is sys.__excepthook__:
            arguments.append("--traceback")
        exits, stop = _run_processes(arguments, count, folder)
        if exits:
            _raise_error(_read_errors(Path(folder)), exits, stop)
        return json.loads(Path(folder, RESULT).read_text(encoding="utf-8"))


def _run_processes(arguments: list[str], count: int, folder: str) -> tuple[dict[int, int], int]:
    """Run Python `count` times; return exit codes by rank if one failed, and the signal that came, 0 if none did.

    As soon as one fails, torch ends the others.
    """
    # The processes meet in a store of this one, as they do in that of torchrun's agent: no port has to be guessed.
    store = dist.TCPStore(_ADDRESS, 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    envs = {rank: _environment(rank, count, store.port, folder) for rank in range(count)}
    logs = DefaultLogsSpecs(log_dir=str(Path(folder, "logs")))
    forward = _Forward()
    with _silence_torch(), handle_signals(dict.fromkeys(_forwarded_signals(), forward)):
        with ThreadPoolExecutor(1) as thread:  # in the main one torch would set signal handlers of its own
            args = dict.fromkeys(envs, tuple(arguments))
            workers = thread.submit(start_processes, "sslkit", sys.executable, args, envs, logs).result()
        try:
            forward.start(workers.pids().values())
            outcome = workers.wait(period=0.1)
        finally:
            workers.close()
    assert outcome is not None  # without a timeout
    return {rank: failure.exitcode for rank, failure in outcome.failures.items()}, forward.stop


def _environment(rank: int, count: int, port: int, folder: str) -> dict[str, str]:
    """Return the variables of one process: torchrun's, and where it leaves its result or error."""
    threads = max(1, available_cores() // count)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": _ADDRESS,
        "MASTER_PORT": str(port),
        "TORCHELASTIC_USE_AGENT_STORE": "True",
        "TORCHELASTIC_RESTART_COUNT": "0",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        FOLDER: folder,
    }


def _forwarded_signals() -> list[int]:
    """Return the signals to forward, without those that are ignored, as nohup ignores SIGHUP."""
    names = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    ending = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    return ending if CHECKPOINT_SIGNAL is None else [*ending, CHECKPOINT_SIGNAL]


class _Forward:
    """Forward signals to the processes; `stop` is the last one that asked the run to end.

    Each process has a session of its own, so that a terminal's Ctrl-C reaches it through this one only. It becomes SIGTERM,
    which ends a process that has not begun to train without a traceback. Windows has no sessions: Ctrl-C reaches all itself.
    """

    def __init__(self) -> None:
        self.stop = 0
        self._pids: list[int] = []

    def start(self, pids: Iterable[int]) -> None:
        """Forward to these processes from now on, and what came before they were there."""
        self._pids = list(pids)
        if self.stop:
            self(self.stop, None)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal."""
        if number != CHECKPOINT_SIGNAL:
            self.stop = number
        for pid in self._pids if hasattr(os, "setsid") else []:
            with suppress(ProcessLookupError):  # it has ended
                os.kill(pid, signal.SIGTERM if number == signal.SIGINT else number)


@contextmanager
def _silence_torch() -> Iterator[None]:
    """Turn off what torch logs when a process fails: the error is reported once."""
    loggers = [logging.getLogger(f"torch.distributed.elastic.multiprocessing.{name}") for name in ("api", "redirects")]
    before = [logger.disabled for logger in loggers]
    for logger in loggers:
        logger.disabled = True
    try:
        yield
    finally:
        for logger, disabled in zip(loggers, before, strict=True):
            logger.disabled = disabled


def _read_errors(folder: Path) -> dict[int, tuple[str, int]]:
    """Return message and exit code of the processes that left an error, by rank, the earliest first."""
    files = sorted(folder.glob(ERRORS), key=lambda file: file.stat().st_mtime_ns)
    errors = [json.loads(file.read_text(encoding="utf-8")) for file in files]
    return {error["rank"]: (error["message"], error["code"]) for error in errors}


def _raise_error(errors: dict[int, tuple[str, int]], exits: Mapping[int, int], stop: int) -> NoReturn:
    """Raise the error that ended the run; `exits` are the exit codes of the processes that failed, the earliest first."""
    causes = [(message, code) for message, code in errors.values() if not message.startswith(LOST)]
    if causes:
        message, code = causes[0]
        if code > 128:
            raise RunInterruptedError(message, stop or code - 128)
        raise (SslkitError if code == SslkitError.exit_code else RunFailedError)(message)
    if stop == signal.SIGINT:
        raise KeyboardInterrupt
    if stop:
        raise RunInterruptedError("interrupted", stop)
    # Torch ends by SIGTERM those that the first failure left behind.
    silent = [(rank, code) for rank, code in exits.items() if rank not in errors and not (errors and code == -signal.SIGTERM)]
    if not silent:
        raise RunFailedError(next(iter(errors.values()))[0])
    rank, code = min(silent, key=lambda exit: exit[1] == -signal.SIGTERM)
    end = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    raise RunFailedError(f"process {rank} {end}", "--resume continues from the last checkpoint")
