"""Constants on a device."""

import functools
from typing import Any

import torch
from torch import Tensor


def constant(values: Any, like: Tensor) -> Tensor:
    """Return numbers in (nested) tuples as a tensor with the dtype and on the device of another, copied there only once.

    The result is shared: change it only out of place. In `predict`, which is compiled, use buffers or plain numbers instead.
    """
    return _on_device(values, like.dtype, like.device)


@functools.cache
def _on_device(values: Any, dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):  # the first use decides what later ones can do with it
        return torch.tensor(values, dtype=dtype, device=device)
