"""Memory: its peak, and the allocator settings that keep freed blocks for the next step."""

import ctypes
import importlib.util
import platform

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


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
