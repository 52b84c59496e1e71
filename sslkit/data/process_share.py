"""What this process may use of the machine: limits of containers and schedulers count, and other processes of the job."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from sslkit.processes import find_place

_GROUPS, _MINE, _MACHINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup"), Path("/proc/meminfo")


def local_processes() -> int:
    """Return how many processes of this job run on this machine."""
    return max(1, find_place(os.environ).local_size)


def available_cores() -> int:
    """Return the share of this process in the cores that the job may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min([cores, *_quotas()])
    of_task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if find_place(os.environ).launcher == "srun" and of_task.isdecimal():  # srun may have bound each task to its cores
        return max(1, min(cores, int(of_task)))
    return max(1, cores // local_processes())


def available_memory() -> int | None:
    """Return the bytes of memory that all processes of the job may use, files in memory included; None on Windows."""
    limits = [*_values("memory.max"), *_values("memory/memory.limit_in_bytes")]
    if not hasattr(os, "sysconf"):
        return None
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([installed, *(int(limit) for limit in limits if limit.isdecimal())])


def free_memory() -> int | None:
    """Return this process's share of the main memory that is free, file caches included, in bytes; None except on Linux."""
    machine = _read(_MACHINE)
    if machine is None:
        return None
    free = [1024 * int(line.split()[1]) for line in machine.splitlines() if line.startswith("MemAvailable:")]
    for controller, limit, used, cached in (
        ("", "memory.max", "memory.current", "inactive_file"),
        ("memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    ):
        for group in _groups(controller):
            numbers = [_read(group / name) or "" for name in (limit, used)]
            if all(number.isdecimal() for number in numbers):  # not "max"
                statistics = dict(line.split() for line in (_read(group / "memory.stat") or "").splitlines())
                free.append(int(numbers[0]) - int(numbers[1]) + int(statistics.get(cached, 0)))
    return min(free) // local_processes() if free else None


def _quotas() -> Iterator[int]:
    """Yield the limits of control groups, as numbers of cores, rounded up."""
    pairs = [value.split() for value in _values("cpu.max")]
    pairs += [[*quota_and_period] for quota_and_period in zip(*map(_values, _QUOTA_FILES), strict=False)]
    for quota, period in (pair for pair in pairs if len(pair) == 2):
        if quota.isdecimal() and period.isdecimal() and int(period):  # not "max" or -1
            yield math.ceil(int(quota) / int(period))


_QUOTA_FILES = ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")  # of control groups' first version


def _values(name: str) -> list[str]:
    """Return the values of a file in this process's control group and in all above it; none where there are no groups."""
    controller, _, last = name.rpartition("/")
    return [value for group in _groups(controller) if (value := _read(group / last)) is not None]


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control group and of all above it; the second version has no controllers."""
    lines = (_read(_MINE) or "").splitlines()
    # Lines are "number:controllers:/path". In a container the path may be outside.
    paths = [line.split(":", 2)[2] for line in lines if controller in line.split(":", 2)[1].split(",")]
    root = _GROUPS / controller
    for group in sorted({root, *(root / path.lstrip("/") for path in paths)}):
        yield from (folder for folder in (group, *group.parents) if folder.is_relative_to(root))


def _read(file: Path) -> str | None:
    try:
        return file.read_text(encoding="utf-8").strip()
    except OSError:
        return None
