"""Every installed task keeps the promises of the contract, and the suite notices one that does not."""

from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, TaskOptions, registry
from sslkit.testing import check_task


@pytest.mark.parametrize("name", [entry.name for entry in registry.entries(registry.TASKS)])
def test_installed_task(name: str) -> None:
    assert not [verdict for verdict in check_task(name) if not verdict.passed]


class Good(PretextTask):
    """Tell the mean brightness."""

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, 1)

    def transform(self, batch: Batch) -> Batch:
        return {"image": batch["image"], "target": batch["image"].mean(dim=(1, 2, 3))}

    def loss(self, output: Tensor, batch: Batch) -> Any:
        return F.mse_loss(output[:, 0], batch["target"])


class Unbounded(Good):
    class Options(TaskOptions):
        weight: float = Field(default=1.0, description="A weight.")


class Shadowing(Good):
    class Options(TaskOptions):
        lr: float = Field(default=1.0, ge=0, description="A rate.")


class ViewsFirst(Good):
    def transform(self, batch: Batch) -> Batch:
        return {**super().transform(batch), "views": torch.stack([batch["image"], batch["image"]])}


class Counting(Good):
    def setup(self) -> None:
        self.register_buffer("calls", torch.zeros(()))

    def predict(self, batch: Batch) -> Tensor:
        self.calls += 1
        return super().predict(batch)


class Infinite(Good):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return super().loss(output, batch) / 0


class Detached(Good):
    def predict(self, batch: Batch) -> Tensor:
        return self.head(self.encoder(batch["image"]).detach())


class Forgetful(Good):
    """Keeps state outside of buffers."""

    seen: ClassVar = 0.0

    def setup(self) -> None:
        self.offset = 0.0

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output[:, 0], batch["target"] + self.offset)

    def after_step(self, seen: Batch) -> None:
        self.offset += 1.0


class Hopeless(Good):
    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return -super().loss(output, batch).clamp(max=0) + 1 + 0 * output.sum()


@pytest.mark.parametrize(
    ("task", "broken"),
    [
        (Good, ""),
        (Unbounded, "options"),
        (Shadowing, "options"),
        (ViewsFirst, "samples first"),
        (Counting, "predict"),
        (Infinite, "finite"),
        (Detached, "gradient"),
        (Forgetful, "state"),
        (Hopeless, "loss falls"),
    ],
)
def test_names_the_broken_promise(task: type[PretextTask], broken: str) -> None:
    failed = [verdict.promise for verdict in check_task(task) if not verdict.passed]
    if broken:
        assert any(broken in promise for promise in failed), failed
    else:
        assert not failed
