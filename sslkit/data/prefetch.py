"""Prefetching: while the device takes a step, the next batch is copied to it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def prefetch(batches: Iterator[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Deliver loaded batches with their tensors on a CUDA device; on other devices as they are.

    A thread waits for the next batch and copies it from pinned memory on a separate stream, so that neither the steps nor
    the device wait. An error is raised where the batch would have been delivered.
    """
    if device.type != "cuda":
        yield from batches
        return
    stream = torch.cuda.Stream(device)

    def fetch() -> tuple[dict[str, Any], torch.cuda.Event] | None:
        raw = next(batches, None)
        if raw is None:
            return None
        with torch.cuda.stream(stream):
            moved = {
                name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value for name, value in raw.items()
            }
            return moved, stream.record_event()

    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(fetch)
        while (fetched := pending.result()) is not None:
            pending = thread.submit(fetch)
            raw, copied = fetched
            current = torch.cuda.current_stream(device)
            current.wait_event(copied)
            for value in raw.values():
                if isinstance(value, Tensor):
                    value.record_stream(current)  # its memory is not given to the copying stream before the step is done
            yield raw
