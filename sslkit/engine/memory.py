"""Memory: what is free, how much is used, and the allocator settings that keep freed blocks for the next step."""

import ctypes
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


_CGROUPS = Path("/sys/fs/cgroup")


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of this process in bytes: on CUDA what torch allocated there, else main memory.

    None where the system does not report it, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if importlib.util.find_spec("resource") is None:
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take, on the device or, for a CPU, within its control group.

    None where the system does not report it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu" or platform.system() != "Linux":
        return None
    fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
    available = 1024 * int(fields["MemAvailable"].split()[0])
    return min([available, *(limit - used for limit, used in _control_groups(_CGROUPS, Path("/proc/self/cgroup").read_text()))])


def _control_groups(root: Path, membership: str) -> Iterator[tuple[int, int]]:
    """Yield limit and use, in bytes, of each control group that limits this process; file caches count as free.

    `membership` is what the kernel says in /proc/self/cgroup. In a container the paths may not be visible; then the group of
    the container is mounted as the root.
    """
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        names = ("memory.max", "memory.current", "inactive_file")
        if controllers:
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        top = root / controllers
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            try:
                limit, used = (int((folder / name).read_text()) for name in names[:2])
                statistics = dict(item.split() for item in (folder / "memory.stat").read_text().splitlines())
                yield limit, used - int(statistics.get(names[2], 0))
            except (OSError, ValueError):  # no such group, or the word `max`
                pass
            if folder == top:
                break


def peak_growth(device: torch.device, run: Callable[[], object]) -> int | None:
    """Return by how many bytes memory grows at most while a function runs; None where the system does not report it."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    resets = Path("/proc/self/clear_refs")
    if device.type != "cpu" or not os.access(resets, os.W_OK):
        return None
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # or memory that was freed before would be used again, unnoticed
    resets.write_text("5")  # the peak becomes what is used now
    before = _status("VmRSS")
    run()
    return max(0, _status("VmHWM") - before)


def _status(name: str) -> int:
    """Return an entry of /proc/self/status, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return 1024 * int(fields[name].split()[0])


def keep_freed_memory() -> None:
    """Stop glibc from returning large blocks to the system; does nothing with another C library.

    By default every activation over 32 MB is mapped again in each step and its pages are zeroed by the kernel: a third of a
    SimCLR step of `resnet_micro` on two cores (benchmarks/speed.md). On GPUs torch has its own allocator.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**26)
