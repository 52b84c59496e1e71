"""Numbers that are read one step late, as on CUDA: nothing differs but when they are known."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit import Batch, Clock, DataInfo, PretextTask
from sslkit.contract.errors import RunFailedError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.job import TrainingJob
from sslkit.engine.parallel import World
from sslkit.engine.pretrain import prepare
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import REQUESTS, SAVE, STOP, Stepper
from sslkit.nn import Teacher
from sslkit.specs.train import PretrainSpec


class Stateful(PretextTask):
    """Has every kind of state: weights, BatchNorm, a teacher, a queue; `bad_step` is the one that fails."""

    bad_step: int | None = None
    bad_gradient = False

    def build_head(self) -> nn.Module:
        return nn.Sequential(nn.Linear(self.encoder.width, 8), nn.BatchNorm1d(8))

    def setup(self) -> None:
        self.teacher = Teacher(self.encoder, self.head)
        self.register_buffer("queue", torch.zeros(64, 8))

    def transform(self, batch: Batch) -> Batch:
        return {"image": batch["canvas"][..., :16, :16] + 0.1 * torch.rand_like(batch["canvas"][..., :16, :16])}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        loss = (output - self.queue.mean(dim=0)).square().sum(dim=1).sqrt().mean()
        if self.clock.step == self.bad_step:
            if self.bad_gradient:
                output.register_hook(lambda gradient: gradient * math.inf)
            else:
                loss = loss * math.nan
        return loss

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        return {"output": output.detach() * (math.nan if self.clock.step == self.bad_step else 1)}

    def after_step(self, remembered: Batch) -> None:
        self.queue[: len(remembered["output"])].copy_(remembered["output"])
        self.teacher.update(self.encoder, self.head, momentum=0.9)


def stepper_of(folder: Path, data: Path, *, late: bool, **changes: Any) -> Stepper:
    spec = PretrainSpec(task="rotation", data=str(data), out=str(folder), steps=8, batch_size=16, **changes)
    job: TrainingJob = prepare(spec)
    seed_stage(0, "build", 0)
    task = Stateful(Stateful.Options(), build_encoder(recipe_for("resnet_micro", 16)), DataInfo(64, 16))
    stepper = Stepper(task, job.settings, Clock(steps=8))
    stepper.reads_late = late
    return stepper


def raw_batch(step: int) -> dict[str, Any]:
    images = torch.randint(0, 256, (16, 24, 24, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(step))
    return {"canvas": images, "aspect": torch.ones(16), "index": torch.arange(16), "broken": []}


def state_of(stepper: Stepper) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in stepper.task.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_the_same_weights_and_numbers(optimizer: str, digits: Path, tmp_path: Path) -> None:
    results = []
    for late in (False, True):
        stepper = stepper_of(tmp_path, digits, late=late, optimizer=optimizer)
        numbers: list[tuple[int, dict[str, float]]] = []
        stepper.report = lambda step, metrics, numbers=numbers: numbers.append((step, metrics))  # type: ignore[misc]
        for step in range(5):
            stepper.step(raw_batch(step))
            assert len(numbers) == (step if late else step + 1)
        stepper.settle()
        assert [step for step, _ in numbers] == [1, 2, 3, 4, 5]
        for _, metrics in numbers:
            metrics.pop("transform_share", None)
        results.append((numbers, state_of(stepper)))
    (early_numbers, early), (late_numbers, late_state) = results
    assert early_numbers == late_numbers
    assert all(torch.equal(value, late_state[name]) for name, value in early.items())


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
@pytest.mark.parametrize("bad_gradient", [False, True])
@pytest.mark.parametrize("bad_step", [0, 3])
def test_a_bad_step_leaves_no_trace(optimizer: str, bad_gradient: bool, bad_step: int, digits: Path, tmp_path: Path) -> None:
    """Weights, norm statistics, teacher and queue are those of the last good step when the error comes, a step late."""
    stepper = stepper_of(tmp_path, digits, late=True, optimizer=optimizer)
    task = stepper.task
    assert isinstance(task, Stateful)
    task.bad_step, task.bad_gradient = bad_step, bad_gradient
    for step in range(bad_step):
        stepper.step(raw_batch(step))
    good = state_of(stepper)
    stepper.step(raw_batch(bad_step))  # no error yet
    cause = "gradient of" if bad_gradient else "loss loss"
    with pytest.raises(RunFailedError, match=rf"step {bad_step + 1} diverged: {cause}.* is not finite"):
        stepper.step(raw_batch(bad_step + 1))
    assert stepper.clock.step == bad_step
    assert all(torch.equal(value, good[name]) for name, value in state_of(stepper).items())


def test_nothing_is_looked_at_before_the_numbers_are_known(digits: Path, tmp_path: Path) -> None:
    stepper = stepper_of(tmp_path, digits, late=True)
    task = stepper.task
    assert isinstance(task, Stateful)
    task.bad_step = 0
    stepper.step(raw_batch(0))
    with pytest.raises(RunFailedError, match="step 1 diverged"):
        stepper.before_epoch(1)


class Twins(World):
    """Two processes with the same numbers: their means are the numbers of one."""

    def average(self, tensors: Iterable[Tensor]) -> None:
        """Leave the tensors as they are."""


def test_requests_travel_with_the_numbers(digits: Path, tmp_path: Path) -> None:
    """Each is published once, after a fixed step, also in a process that has read the numbers earlier."""
    for late in (False, True):
        stepper = stepper_of(tmp_path, digits, late=late)
        stepper.world = Twins(0, 2)
        stepper.step(raw_batch(0))
        stepper.stop.checkpoint = True
        stepper.step(raw_batch(1))
        numbers = stepper.settle()
        assert stepper.requests == (set() if late else {SAVE}) and not stepper.stop.checkpoint
        assert not numbers.keys() & REQUESTS
        stepper.step(raw_batch(2))
        assert stepper.requests == {SAVE}
        stepper.requests.clear()
        stepper.stop.signal = 15
        for step in (3, 4):
            stepper.step(raw_batch(step))
        assert stepper.requests == {STOP}
