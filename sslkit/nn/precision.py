"""Half precision, where it is not enough."""

import torch
from torch import Tensor


def widen(values: Tensor) -> Tensor:
    """Return values in float32 if they are in half precision; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
