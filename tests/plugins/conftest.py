"""Build a task on a small encoder, and stand in for the run that it asks in `before_epoch`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit import DataInfo, EncoderBuilder
from sslkit.encoders import recipe_for
from sslkit.registry import load_task


class FakeRun:
    """Answers as an engine does, with features that are given, and notes what was asked."""

    def __init__(self, features: Tensor | None = None) -> None:
        self.given, self.balanced, self.forgotten, self.encoder = features, None, [], None

    def features(self, encoder: nn.Module | None = None) -> Tensor:
        assert self.given is not None
        self.encoder = encoder
        return self.given

    def images(self, count: int) -> Tensor:
        return torch.rand(min(count, 40), 3, 36, 36, generator=torch.Generator().manual_seed(0))

    def balance(self, labels: Tensor) -> None:
        self.balanced = labels.clone()

    def forget(self, module: nn.Module) -> None:
        self.forgotten.append(module)


@pytest.fixture
def build() -> Callable[..., Any]:
    def built(name: str, size: int = 32, channels: int = 3, samples: int = 64, **options: Any) -> Any:
        task_class = load_task(name)
        data, given = DataInfo(samples, size, channels), task_class.Options(**options)
        recipe = recipe_for("resnet_micro", size, channels, {"width": "8"})
        return task_class(given, task_class.build_encoder(given, EncoderBuilder(recipe, data)), data)

    return built
