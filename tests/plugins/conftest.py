"""Build a task on a small encoder."""

from collections.abc import Callable
from typing import Any

import pytest

from sslkit import DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.tasks.load import load_task


@pytest.fixture
def build() -> Callable[..., Any]:
    def build_task(name: str, size: int = 32, channels: int = 3, samples: int = 64, **options: Any) -> Any:
        task_class = load_task(name)
        data, parsed = DataInfo(samples, size, channels), task_class.Options(**options)
        recipe = recipe_for("resnet_micro", size, channels, {"width": "8"})
        return task_class(parsed, task_class.build_encoder(parsed, RecipeBuilder(recipe, data)), data)

    return build_task
