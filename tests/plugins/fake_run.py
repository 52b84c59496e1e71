"""A fake of the `Run` that tasks get in `before_epoch`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from tests.canvases import canvases


class FakeRun:
    """Returns fixed features and images, and records calls."""

    def __init__(self, features: Tensor | None = None) -> None:
        self.fixed_features, self.balanced, self.forgotten, self.encoder = features, None, [], None

    def features(self, encoder: nn.Module | None = None) -> Tensor:
        assert self.fixed_features is not None
        self.encoder = encoder
        return self.fixed_features

    def batch(
        self, count: int, select: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda batch: batch
    ) -> dict[str, Tensor]:
        return select(canvases(torch.rand(min(count, 40), 3, 36, 36, generator=torch.Generator().manual_seed(0))))

    def map(self, function: Callable[[dict[str, Tensor]], Tensor]) -> Tensor:
        return function(self.batch(40))

    def sample_balanced(self, labels: Tensor) -> None:
        self.balanced = labels.clone()

    def reset_optimizer_state(self, module: nn.Module) -> None:
        self.forgotten.append(module)
