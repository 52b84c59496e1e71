"""Worker processes of the loader: their signals, warnings, and the end of the main process."""

import multiprocessing
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

from sslkit.contract.errors import SslkitError
from sslkit.processes import ignore_checkpoint_signal


@contextmanager
def allow_many_workers() -> Iterator[None]:
    """Silence torch's warning about more workers than cores, both where they are configured and where they start.

    The user asked for them: on slow disks most of them wait.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


@contextmanager
def keep_worker_deaths_silent() -> Iterator[None]:
    """Undo torch's handler that raises in the middle of a step when a worker dies: the next batch reports it."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class _Flag:
    """A `multiprocessing.Event` without a lock: a worker that is killed while holding one would block all others."""

    def __init__(self) -> None:
        self._value: Any = multiprocessing.Value("b", 0, lock=False)

    def is_set(self) -> bool:
        """Return whether the flag is set."""
        return bool(self._value.value)

    def set(self) -> None:
        """Set the flag."""
        self._value.value = 1


# Whether this process is about to end: shared with the workers, which a signal may end only then.
leaving = _Flag()


def ignore_stop_signals(leaving: _Flag, worker: int) -> None:
    """Ignore the signals that a terminal or a job scheduler also sends to workers: the loop finishes its step and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_checkpoint_signal()
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if leaving.is_set() else None)


SHARED_MEMORY = "/dev/shm"  # where workers put their batches
_AHEAD = 2  # batches that torch's workers prepare, each


def check_shared_memory(batch_bytes: int, workers: int) -> None:
    """Raise SslkitError if the batches of all workers do not fit the shared memory: they would die in the first epoch."""
    if not workers or not os.path.isdir(SHARED_MEMORY):
        return
    free, needed = shutil.disk_usage(SHARED_MEMORY).free, batch_bytes * workers * _AHEAD
    if needed <= free:
        return
    fitting = free // (batch_bytes * _AHEAD)
    raise SslkitError(
        f"the batches of {workers} workers take {needed / 1e6:,.0f} MB of {SHARED_MEMORY}, which has {free / 1e6:,.0f} MB free",
        f"use --workers {fitting}, a smaller --batch-size, or a larger {SHARED_MEMORY} (docker run --shm-size)",
        flag="workers",
    )


def worker_context() -> Any:
    """Return the context in which workers start, with that flag as torch's event."""
    context: Any = copy(multiprocessing.get_context())  # not the shared one
    context.Event = _Flag
    return context
