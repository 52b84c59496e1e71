"""What makes the host wait for the device is named, and what does not is let through."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.nn import constant
from sslkit.testing import check_task
from sslkit.testing.synchronization import ForbidSynchronization, SynchronizationError

DEVICE = torch.device("meta")
HOST = torch.arange(3)


WAITING: dict[str, tuple[Callable[[Tensor], Any], str]] = {
    "item": (lambda x: x[0, 0].item(), "reads a value"),
    "float": (lambda x: float(x.sum()), "reads a value"),
    "int": (lambda x: int(x.argmax()), "reads a value"),
    "if": (lambda x: 1 if x.any() else 2, "reads a value"),
    "tolist": (lambda x: x.tolist(), "copies a tensor to the CPU"),
    "cpu": (lambda x: x.cpu(), "copies a tensor to the CPU"),
    "to the CPU": (lambda x: x.to("cpu", torch.float64), "copies a tensor to the CPU"),
    "numpy": (lambda x: x.cpu().numpy(), "copies a tensor to the CPU"),
    "nonzero": (lambda x: x.nonzero(), "nonzero"),
    "where of one argument": (lambda x: torch.where(x > 0), "nonzero"),
    "masked_select": (lambda x: x.masked_select(x > 0), "masked_select"),
    "mask as an index": (lambda x: x[x > 0], "a bool tensor as an index"),
    "mask as an index of a part": (lambda x: x[:, x[0] > 0], "a bool tensor as an index"),
    "values by a mask": (lambda x: x.__setitem__(x > 0, torch.zeros(5, device=DEVICE)), "a bool tensor as an index"),
    "list as an index": (lambda x: x[[0, 2]], "copies an index"),
    "host's index": (lambda x: x[HOST], "copies an index"),
    "randperm on the host": (lambda x: x[torch.randperm(4)], "copies an index"),
    "tensor": (lambda x: x * torch.tensor([1.0, 2, 3], device=x.device), "copies Python values to the device (tensor)"),
    "tensor of a number": (lambda x: x * torch.tensor(0.5, device=x.device), "copies Python values to the device (tensor)"),
    "as_tensor": (lambda x: torch.as_tensor([1.0, 2, 3], device=x.device), "copies Python values to the device (as_tensor)"),
    "new_tensor": (lambda x: x.new_tensor([1.0, 2, 3]), "copies Python values to the device (new_tensor)"),
    "to": (lambda x: x + HOST.to(x.device), "copies a tensor from the CPU"),
    "copy_": (lambda x: x.copy_(torch.zeros(4, 3)), "copies a tensor from the CPU"),
    "mixed": (lambda x: x + HOST, "mixes a tensor on the CPU"),
    "unique": (lambda x: x.unique(), "unique"),
    "bincount": (lambda x: x[0].long().bincount(), "bincount"),
    "repeat_interleave": (lambda x: x.repeat_interleave(x[:, 0].long(), dim=0), "repeat_interleave"),
    "equal": (lambda x: torch.equal(x, x + 1), "torch.equal"),
    "cov": (lambda x: torch.cov(x), "torch.equal"),
    "inv": (lambda x: torch.linalg.inv(x[:3]), "torch.linalg"),
}


FREE: dict[str, Callable[[Tensor], Any]] = {
    "host's values": lambda x: x[: int(torch.rand(()).item() * 3)],
    "full": lambda x: x * torch.full((3,), 0.5, device=x.device),
    "indices": lambda x: x[torch.randperm(4, device=x.device)],
    "slices": lambda x: x[1:, None, ..., 2],
    "one value by a mask": lambda x: x.__setitem__(x > 0, 0.0),
    "masked_fill": lambda x: x.masked_fill(x > 0, 1),
    "where": lambda x: torch.where(x > 0, x, 0.0),
    "number of a tensor": lambda x: x + torch.tensor(0.5),  # no dimension: a number on the host
    "asynchronous copy": lambda x: x + HOST.to(x.device, non_blocking=True),
    "repeat_interleave of a number": lambda x: x.repeat_interleave(2, dim=0),
    "repeat_interleave of a known size": lambda x: x.repeat_interleave(x[:, 0].long(), dim=0, output_size=9),
    "one_hot": lambda x: F.one_hot(x.long(), 5),
    "multinomial": lambda x: torch.multinomial(x, 2),
}


@pytest.mark.parametrize("name", WAITING)
def test_names_what_waits_and_where(name: str) -> None:
    function, reason = WAITING[name]
    with pytest.raises(SynchronizationError) as raised, ForbidSynchronization():
        function(torch.rand(4, 3, device=DEVICE))
    assert reason in str(raised.value)
    assert f"(test_synchronization.py:{function.__code__.co_firstlineno})" in str(raised.value)


@pytest.mark.parametrize("name", FREE)
def test_lets_through_what_does_not_wait(name: str) -> None:
    with ForbidSynchronization():
        FREE[name](torch.rand(4, 3, device=DEVICE))


def test_what_happens_on_the_cpu_alone_is_free() -> None:
    x = torch.rand(4, 3)
    with ForbidSynchronization():
        assert x[x > 0.5].sum().item() == pytest.approx(float(x.where(x > 0.5, 0).sum()))
        assert torch.equal(x + torch.tensor([1.0, 2, 3]), x + torch.tensor([1.0, 2, 3]))


class KeepsAConstant(PretextTask):
    """Predict the weighted brightness, with weights that are copied to the device once."""

    def build_head(self) -> nn.Module:
        return nn.Linear(self.encoder.width, 1)

    def transform(self, batch: Batch) -> Batch:
        weights = constant((0.2, 0.3, 0.5), batch["canvas"])
        return {"image": batch["canvas"], "target": batch["canvas"].mean(dim=(2, 3)) @ weights}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        return F.mse_loss(output[:, 0], batch["target"])


class CopiesEachTime(KeepsAConstant):
    """Predict the weighted brightness, with weights that are copied in each step."""

    def transform(self, batch: Batch) -> Batch:
        weights = torch.tensor([0.2, 0.3, 0.5], device=batch["canvas"].device)
        return {"image": batch["canvas"], "target": batch["canvas"].mean(dim=(2, 3)) @ weights}


class ReadsTheLoss(KeepsAConstant):
    """Predict the weighted brightness, unless the error is large."""

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        loss = super().loss(output, batch)
        return loss if loss < 1e3 else loss / 2


class ReadsAfterwards(KeepsAConstant):
    """Predict the weighted brightness, and count large errors."""

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        return {"error": (output[:, 0] - batch["target"]).abs()}

    def after_step(self, remembered: Batch) -> None:
        self.clock.large = len(remembered["error"][remembered["error"] > 1])  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("task", "problem"),
    [
        (KeepsAConstant, ""),
        (CopiesEachTime, "transform copies Python values to the device (tensor) (test_synchronization.py:"),
        (ReadsTheLoss, "loss reads a value (.item(), float(), int(), bool(), if) (test_synchronization.py:"),
        (ReadsAfterwards, "after_step counts values (a bool tensor as an index) (test_synchronization.py:"),
    ],
)
def test_check_names_operation_stage_and_line(task: type[PretextTask], problem: str) -> None:
    failed = {verdict.promise: verdict.detail for verdict in check_task(task) if not verdict.passed}
    assert list(failed) == (["no stage waits for the device"] if problem else [])
    assert failed.get("no stage waits for the device", "").startswith(problem)
