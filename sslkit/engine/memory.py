"""Memory: let the C library keep what is asked for again in every step; how much there was at most."""

import ctypes
import importlib.util
import platform

import torch

_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX = -1, -2, -4  # of glibc's malloc.h


def peak_memory(device: torch.device) -> int | None:
    """Return the most bytes that this process has held: on CUDA what torch allocated there, else of main memory.

    None where the system does not tell, as Windows does not.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if importlib.util.find_spec("resource") is None:
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if platform.system() == "Darwin" else 1024 * peak


def keep_freed_memory() -> None:
    """Tell glibc not to hand large blocks back to the system; does nothing on another C library.

    By default every activation over 32 MB is mapped anew in each step and its pages zeroed by the kernel: a third of a
    SimCLR step of `resnet_micro` on two cores (benchmarks/speed.md). GPUs have an allocator of torch's own.
    """
    if platform.system() == "Linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_MAX, 0)
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(_M_TOP_PAD, 2**26)
