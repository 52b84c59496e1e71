"""One batch ahead: while the device takes a step, the next batch is on its way to it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def prefetch(batches: Iterator[dict[str, Any]], device: torch.device) -> Iterator[dict[str, Any]]:
    """Deliver loaded batches with their tensors on a CUDA device; on others, as they are.

    A thread waits for the next batch and copies it, from pinned memory and on a stream of its own, so that neither the steps
    nor the device wait. Errors arrive where the batch would.
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
        coming = thread.submit(fetch)
        while (found := coming.result()) is not None:
            coming = thread.submit(fetch)
            raw, there = found
            current = torch.cuda.current_stream(device)
            current.wait_event(there)
            for value in raw.values():
                if isinstance(value, Tensor):
                    value.record_stream(current)  # its memory is not given to the copying stream before the step is done
            yield raw
