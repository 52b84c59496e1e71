"""Worker processes of the loader: their signals, warnings, and the end of the main process."""

import multiprocessing
import os
import shutil
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import DTypeLike, NDArray
from torch import Tensor
from torch.utils.data import get_worker_info

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import Source
from sslkit.data.process_share import local_processes
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


def start_worker(leaving: _Flag, worker: int) -> None:
    """Prepare a worker process: what a terminal or a job scheduler sends to all does not end it, and C libraries are silent."""
    _ignore_stop_signals(leaving)
    _silence_libraries()


def _ignore_stop_signals(leaving: _Flag) -> None:
    """Ignore the signals that a terminal or a job scheduler also sends to workers: the loop finishes its step and ends them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    ignore_checkpoint_signal()
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0) if leaving.is_set() else None)


def _silence_libraries() -> None:
    """Discard what C libraries print, such as remarks of decoders on damaged files; what Python prints still appears."""
    if sys.stderr is sys.__stderr__ and sys.stderr is not None:
        sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)


SHARED_MEMORY = "/dev/shm"  # where workers put what they read
_AHEAD = 2  # pieces that torch's workers prepare, each
_MOST_PREFETCHED = 10**9  # bytes of all workers' pieces


def rows_of_pieces(source: Source, workers: int) -> int:
    """Return how many samples a worker reads at a time, so that what all have read ahead fits the shared memory twice.

    Raises SslkitError if not even single samples fit: the workers would die in the first epoch.
    """
    arrays, _ = source.read(np.array([0]))
    needed = sum(array.nbytes for array in arrays.values()) * workers * _AHEAD
    free = shutil.disk_usage(SHARED_MEMORY).free if os.path.isdir(SHARED_MEMORY) else 2 * _MOST_PREFETCHED
    if needed > free:
        raise SslkitError(
            f"{workers} workers that read {_AHEAD} samples each need {needed / 1e6:,.1f} MB of {SHARED_MEMORY}, "
            f"which has {free / 1e6:,.1f} MB free",
            f"use --workers {free * workers // needed}, or a larger {SHARED_MEMORY} (docker run --shm-size)",
            flag="workers",
        )
    return max(1, min(_MOST_PREFETCHED, free // 2) // local_processes() // max(needed, 1))


def zeros(shape: tuple[int, ...], dtype: DTypeLike) -> NDArray[Any]:
    """Return an array of zeros: in a worker in shared memory, from where it goes to the run without a copy."""
    array = np.zeros(shape, dtype)
    if get_worker_info() is None or not array.nbytes:
        return array
    tensor = torch.from_numpy(array[:0])
    storage = torch.UntypedStorage._new_shared(array.nbytes, device="cpu")
    shared: NDArray[Any] = tensor.new_empty(0).set_(storage).view(shape).numpy()
    return shared


def as_tensor(array: NDArray[Any]) -> Tensor:
    """Return an array as a tensor, that of `zeros` where it lies."""
    whole = array.base
    if isinstance(whole, Tensor) and whole.shape == array.shape and whole.data_ptr() == array.ctypes.data:
        return whole
    return torch.from_numpy(array)


def worker_context() -> Any:
    """Return the context in which workers start, with that flag as torch's event."""
    context: Any = copy(multiprocessing.get_context())  # not the shared one
    context.Event = _Flag
    return context
