"""Half precision, where it is not enough."""

import torch
from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """Return values in float32 if they are in half precision, else as they are."""
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values
