"""Stop signals: Ctrl-C and SIGTERM end a run after the current step and a checkpoint."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopSignal:
    """The signal that asked the run to stop; 0 as long as there was none."""

    signal = 0


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Record Ctrl-C and SIGTERM for the loop to act on; a second signal ends the process at once."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers; a caller in another thread has its own way to stop a run
        return
    before: dict[signal.Signals, Any] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        stop.signal = number
        for which, handler in before.items():
            signal.signal(which, handler)

    for which in (signal.SIGINT, signal.SIGTERM):
        before[which] = signal.signal(which, handle)
    try:
        yield stop
    finally:
        for which, handler in before.items():
            signal.signal(which, handler)
