"""Memory: what is free, how much is used, and the allocator settings that keep freed blocks for the next step."""

import ctypes
import os
import platform
from collections.abc import Callable
from pathlib import Path

import torch

from sslkit.data import process_share

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def peak_memory(device: torch.device) -> int | None:
    """Return the peak memory of this process in bytes: on CUDA what torch allocated there, else main memory.

    None where the system does not report it, as on Windows.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that this process may still take, on the device or, for a CPU, within its control group.

    None where the system does not report it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return process_share.free_memory() if device.type == "cpu" else None


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
    resets.write_text("5", encoding="ascii")  # the peak becomes what is used now
    before = used_memory()
    run()
    return max(0, _status("VmHWM") - before)


def used_memory() -> int:
    """Return the bytes of main memory that this process uses; on Linux only."""
    return _status("VmRSS")


def _status(name: str) -> int:
    """Return an entry of /proc/self/status, in bytes."""
    fields = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
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
