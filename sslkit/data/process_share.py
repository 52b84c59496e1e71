"""What this process may use of the machine: limits of containers and schedulers count, and other processes of the job."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

from sslkit.processes import find_place

_GROUPS, _MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


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


def available_memory() -> int:
    """Return the bytes of memory that all processes of the job may use, files in memory included."""
    installed = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limits = [*_values("memory.max"), *_values("memory/memory.limit_in_bytes")]
    return min([installed, *(int(limit) for limit in limits if limit.isdecimal())])


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
    try:
        lines = _MINE.read_text().splitlines()
    except OSError:
        lines = []
    # Lines are "number:controllers:/path"; the second version has no controllers. In a container the path may be outside.
    paths = [line.split(":", 2)[2] for line in lines if controller in line.split(":", 2)[1].split(",")]
    root, values = _GROUPS / controller, []
    for group in sorted({root, *(root / path.lstrip("/") for path in paths)}):
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            try:
                values.append((folder / last).read_text().strip())
            except OSError:
                continue
    return values
