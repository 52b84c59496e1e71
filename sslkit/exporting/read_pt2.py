"""Read a torch.export program. Stand-alone: imports nothing of sslkit."""

from collections.abc import Callable
from typing import Any


def load(file: str, settings: dict[str, Any]) -> Callable[[Any], Any]:
    """Return the program as a function of arrays `[B, ...]`."""
    import torch

    module = torch.export.load(file).module()
    return lambda samples: module(torch.from_numpy(samples)).detach().numpy()
