"""Worker processes of the loader: signals, warnings, and the end of the main process."""

import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any


@contextmanager
def allow_many_workers() -> Iterator[None]:
    """Suppress torch's warnings about more workers than cores.

    They are what was asked for: disks that answer slowly keep them waiting.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


@contextmanager
def keep_worker_deaths_silent() -> Iterator[None]:
    """Undo torch's handler that raises, wherever the step may be, when a worker dies: it is noticed at the next batch."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "SIGCHLD"):
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, before)


class _Flag:
    """A `multiprocessing.Event` without a lock: a worker killed while holding one would block all others."""

    def __init__(self) -> None:
        self._value: Any = multiprocessing.Value("b", 0, lock=False)

    def is_set(self) -> bool:
        """Return whether it is set."""
        return bool(self._value.value)

    def set(self) -> None:
        """Set it."""
        self._value.value = 1


# Whether this process is about to end: shared with the workers, who may then be ended by a signal.
leaving = _Flag()


def ignore_stop_signals(leaving: _Flag, worker: int) -> None:
    """Ignore what a terminal or a job scheduler sends to workers too: the loop finishes its step and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if leaving.is_set() else None)


def worker_context() -> Any:
    """Return the context in which workers start, with that flag for torch to ask."""
    context: Any = copy(multiprocessing.get_context())  # not the one that everybody has
    context.Event = _Flag
    return context
