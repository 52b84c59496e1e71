"""Many steps: nothing grows."""

import statistics
import time
from pathlib import Path

from promises import TINY, Process, Promise, step_of


def long_run(folder: Path, data: Path, long: bool) -> list[Promise]:
    """Look at memory, open files, threads and the log of a tiny run."""
    steps = 20_000 if long else 2_000
    process = Process(
        "pretrain", "rotation", "--data", data, *TINY, "--batch-size", 4, "--steps", steps, "--out", folder / "run"
    )
    measurements: list[tuple[int, int, int]] = []
    code = None
    while code is None:
        code = process.wait(0.5)
        if code is None and (folder / "run" / "metrics.jsonl").exists():
            measurements.append(resource_usage(process.pid))
    # Batches on their way hold files for a moment: the medians of the second and the last fifth, not two moments.
    fifth = len(measurements) // 5
    early, late = medians(measurements[fifth : 2 * fifth]), medians(measurements[-fifth - 2 : -2])
    end = Promise(f"{steps:,} steps", "they are taken")
    end.check(code == 0 and step_of(folder / "run") == steps, f"code {code}, {process.errors}")
    grows = Promise(f"{steps:,} steps", "memory in the last fifth at most 5% above the second; open files and threads not more")
    grows.check(late[0] <= 1.05 * early[0], f"memory {early[0]:,} and {late[0]:,} bytes")
    grows.check(late[1] <= early[1] + 1, f"{early[1]} and {late[1]} open files")
    grows.check(late[2] <= early[2], f"{early[2]} and {late[2]} threads")
    log = Promise(f"{steps:,} steps", "at most 1,000 kB of log")
    size = (folder / "run" / "metrics.jsonl").stat().st_size
    log.check(size < 1_000_000, f"{size:,} bytes")
    return [end, grows, log]


def medians(measurements: list[tuple[int, int, int]]) -> list[int]:
    """Return the median of each column, rounded."""
    return [round(statistics.median(column)) for column in zip(*measurements, strict=True)]


def resource_usage(process: int) -> tuple[int, int, int]:
    """Return memory, open files and threads of a process, zeros if it has ended."""
    try:
        memory = 4096 * int(Path(f"/proc/{process}/statm").read_text().split()[1])
        files = len(list(Path(f"/proc/{process}/fd").iterdir()))
        return memory, files, len(list(Path(f"/proc/{process}/task").iterdir()))
    except OSError:
        time.sleep(0.01)
        return 0, 0, 0
