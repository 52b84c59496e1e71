"""Signals: Ctrl-C and SIGTERM end a run after the current step and a checkpoint; after SIGUSR1's checkpoint it goes on."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from sslkit.processes import CHECKPOINT_SIGNAL

Handler = Callable[[int, FrameType | None], None]


class StopSignal:
    """What signals ask of the run: `signal` is the one that asked it to stop, 0 as long as there was none."""

    signal = 0
    checkpoint = False  # since the last one


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Record Ctrl-C, SIGTERM and SIGUSR1 for the loop to act on; a second signal to stop ends the process at once."""
    stop = StopSignal()

    def request_stop(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        for which in (signal.SIGINT, signal.SIGTERM):
            signal.signal(which, before[which])

    def request_checkpoint(number: int, frame: FrameType | None) -> None:
        stop.checkpoint = True

    handlers: dict[int, Handler] = {signal.SIGINT: request_stop, signal.SIGTERM: request_stop}
    if CHECKPOINT_SIGNAL is not None:
        handlers[CHECKPOINT_SIGNAL] = request_checkpoint
    with handle_signals(handlers) as before:
        yield stop


@contextmanager
def handle_signals(handlers: dict[int, Handler]) -> Iterator[dict[int, Any]]:
    """Call the handlers for their signals meanwhile; yields the handlers from before.

    Only the main thread may set handlers: a caller in another thread has its own way to stop a run.
    """
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for which, handler in handlers.items():
            before[which] = signal.signal(which, handler)
    try:
        yield before
    finally:
        for which, earlier in before.items():
            signal.signal(which, earlier)
