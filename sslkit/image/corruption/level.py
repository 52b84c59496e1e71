"""How strong a corruption is, and what is random about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

T = TypeVar("T")
_SMALL, _LARGE = 32, 224  # sides for which the paper's settings are: of CIFAR-10-C and ImageNet-C
_LARGEST_SMALL = 96


@dataclass(frozen=True)
class Level:
    """A severity from 1 to 5, for images with a side in pixels."""

    severity: int
    side: int

    def choose(self, small: Sequence[T], large: Sequence[T]) -> T:
        """Return the setting of this severity: of five for small images, or of five for large ones."""
        return (small if self.side <= _LARGEST_SMALL else large)[self.severity - 1]

    def pixels(self, length: float) -> float:
        """Return a length of the paper's images in pixels of these."""
        return length * self.side / (_SMALL if self.side <= _LARGEST_SMALL else _LARGE)


class Draws:
    """Random numbers for each image of a batch, the same on every device and whatever else is in the batch."""

    def __init__(self, seed: int, name: str, severity: int, rows: list[int], device: torch.device) -> None:
        self.generators = [np.random.default_rng([seed, crc32(name.encode()), severity, row]) for row in rows]
        self.device = device

    def normal(self, *shape: int) -> Tensor:
        """Return standard normal values, `[B, *shape]`."""
        return self._stack([random.standard_normal(shape, dtype=np.float32) for random in self.generators])

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Return values from `low` to `high`, `[B, *shape]`."""
        return self._stack([low + (high - low) * random.random(shape, dtype=np.float32) for random in self.generators])

    def integers(self, low: int, high: int, *shape: int) -> Tensor:
        """Return integers from `low` to `high - 1`, int64 `[B, *shape]`."""
        return self._stack([random.integers(low, high, shape) for random in self.generators])

    def poisson(self, means: Tensor) -> Tensor:
        """Return Poisson counts for means `[B, ...]`."""
        pairs = zip(self.generators, means.cpu().numpy(), strict=True)
        return self._stack([random.poisson(mean).astype(np.float32) for random, mean in pairs])

    def _stack(self, values: Sequence[NDArray[Any] | float | int]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(value) for value in values])).to(self.device)
