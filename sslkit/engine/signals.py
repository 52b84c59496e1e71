"""Finish the step and write a checkpoint when asked to stop."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


class StopSignal:
    """Remember the signal that asked the run to stop; 0 as long as none did."""

    signal = 0


@contextmanager
def catch_stop_signals() -> Iterator[StopSignal]:
    """Let Ctrl-C and SIGTERM set a flag for the loop to look at; a second one leaves at once."""
    stop = StopSignal()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers; whoever runs us elsewhere stops us in their own way
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
