"""Gradients that are exchanged while the backward pass runs are those of an exchange after it."""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sslkit import Batch, DataInfo, PretextTask
from sslkit.contract.errors import RunFailedError
from sslkit.contract.task import Clock, rows
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.buckets import GradientBuckets
from sslkit.engine.compilation import Predict
from sslkit.engine.micro_batches import MicroBatches, compute_gradients
from sslkit.engine.parallel import ALONE, World
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.stepper import Stepper
from sslkit.tasks.load import load_task
from sslkit.testing.bench import Bench
from tests.processes import run_in_two

CPU = torch.device("cpu")

SMALL = (64, 256)  # bytes of a bucket: several for the tiny networks here


class Uncoupled(PretextTask):
    """Three layers, of which the last one may be the first one again; some parameters only the loss uses, or nothing."""

    shared = False

    def build_head(self) -> nn.Module:
        """Build the layers."""
        first = nn.Linear(4, 4)
        last = first if self.shared else nn.Linear(4, 4)
        return nn.Sequential(first, nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), last)

    def setup(self) -> None:
        """Build what only the loss uses, what the loss uses too, and what nothing uses."""
        self.scale, self.unused = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(3))
        self.both = nn.Parameter(torch.ones(4))

    def predict(self, batch: Batch) -> Tensor:
        """Return `[B, 4]`."""
        return self.head(batch["x"] * self.both)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return a mean over samples."""
        return (self.scale * output * self.both - batch["x"]).square().mean()


class Coupled(Uncoupled):
    """Every output is compared with the mean of all."""

    couples_samples = True

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the distance to the mean."""
        return super().loss(output - output.mean(dim=0), batch)


def task_of(coupled: bool, shared: bool) -> PretextTask:
    torch.manual_seed(0)
    task_class: Any = Coupled if coupled else Uncoupled
    task_class.shared = shared
    encoder = build_encoder(recipe_for("resnet_micro", 16, options={"width": "8"}))
    task: PretextTask = task_class(task_class.Options(), encoder, DataInfo(8, 16)).double()
    return task


def gradients(task: PretextTask) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in task.named_parameters() if p.grad is not None}


def in_all_cases(world: World) -> list[float]:
    """Return, for each case, the largest difference between the gradients of the two ways of exchange."""
    differences = []
    for coupled, size, frozen, shared in itertools.product((False, True), (6, 2), (False, True), (False, True)):
        task = task_of(coupled, shared)
        machine = Machine(CPU, None, compile=False, world=world)
        predict, buckets = Predict(task, machine), GradientBuckets(task, world, SMALL)
        largest = 0.0
        for step in range(6):
            # The encoder's place in a run: some parameters are frozen and thawed, and micro-batches may change.
            task.head[2].requires_grad_(not (frozen and step < 3))
            current = 3 if step == 5 else size
            generator = torch.Generator().manual_seed(10 * step + world.rank)
            batch = {"x": torch.rand(6, 4, dtype=torch.float64, generator=generator)}
            micro_batches = MicroBatches(task, predict, machine, batch, current, 0, step)
            task.zero_grad(set_to_none=True)
            with buckets.exchange(len(micro_batches.starts), 0):
                compute_gradients(micro_batches, lambda loss: loss)
            exchanged = gradients(task)
            task.zero_grad(set_to_none=True)
            compute_gradients(micro_batches, lambda loss: loss)
            world.average(parameter.grad for parameter in task.parameters() if parameter.grad is not None)
            expected = gradients(task)
            assert expected.keys() == exchanged.keys(), expected.keys() ^ exchanged.keys()
            assert ("head.2.weight" in expected) == task.head[2].weight.requires_grad
            largest = max([largest, *(float((expected[name] - exchanged[name]).abs().max()) for name in expected)])
        differences.append(largest)
    return differences


def order_of_events(world: World) -> list[list[int]]:
    """Return the number of buckets on their way when the backward pass enters each layer, the last one first, by step."""
    task = task_of(coupled=False, shared=False)
    machine = Machine(CPU, None, compile=False, world=world)
    predict, buckets = Predict(task, machine), GradientBuckets(task, world, SMALL)
    events: list[int] = []
    for layer in (0, 2, 4):
        task.head[layer].register_full_backward_pre_hook(lambda module, gradient: events.append(buckets.started))
    by_step = []
    for step in range(2):
        events.clear()
        task.zero_grad(set_to_none=True)
        batch = {"x": torch.rand(4, 4, dtype=torch.float64)}
        with buckets.exchange(2, 0):
            compute_gradients(MicroBatches(task, predict, machine, batch, 2, 0, step), lambda loss: loss)
        by_step.append(list(events))
    return by_step


def surplus(world: World) -> str:
    task = task_of(coupled=False, shared=False)
    buckets, x = GradientBuckets(task, world, SMALL), torch.rand(4, 4, dtype=torch.float64)
    for backwards in (1, 1, 2):
        task.zero_grad(set_to_none=True)
        try:
            with buckets.exchange(1, 0):
                for _ in range(backwards):
                    task.loss(task.predict({"x": x}), {"x": x}).backward()
        except RunFailedError as error:
            return str(error)
    return ""


def with_batchnorm(world: World) -> dict[str, Tensor]:
    """Return the state after two steps of a task with BatchNorm everywhere, over all processes, in float64."""
    with Bench(load_task("simclr")) as bench:
        stepper = bench.stepper(world=world)
        machine = choose_machine("cpu", sync_batchnorm="on", world=world)
        task = stepper.task.double()
        stepper = Stepper(task, replace(stepper.settings, machine=machine), Clock(steps=10))
        for _ in range(2):
            stepper.learn(rows(bench.transformed(stepper), *(world.share(8).start, world.share(8).stop)))
    return task.state_dict()


def everything(world: World) -> dict[str, Any]:
    return {
        "differences": in_all_cases(world),
        "order": order_of_events(world),
        "surplus": surplus(world),
        "batchnorm": with_batchnorm(world),
    }


@pytest.fixture(scope="module")
def results() -> list[dict[str, Any]]:
    return run_in_two(everything)


def test_the_exchange_during_the_backward_pass_is_exact(results: list[dict[str, Any]]) -> None:
    first, second = (result["differences"] for result in results)
    assert len(first) == 16 and max(first + second) < 1e-15


def test_a_bucket_starts_before_the_backward_pass_ends(results: list[dict[str, Any]]) -> None:
    for result in results:
        first_step, second_step = result["order"]
        assert first_step == [0] * 6
        assert second_step[:3] == [0, 0, 0]  # of two micro-batches, the first only accumulates
        assert 0 < second_step[4] <= second_step[5]


def test_a_gradient_after_the_exchange_is_an_error(results: list[dict[str, Any]]) -> None:
    for result in results:
        assert "received 2 gradients in a step instead of 1" in result["surplus"]


def test_batchnorm_sees_the_whole_batch(results: list[dict[str, Any]]) -> None:
    alone = with_batchnorm(ALONE)
    for result in results:
        assert all(torch.allclose(value, alone[name], rtol=0, atol=1e-10) for name, value in result["batchnorm"].items())


def test_one_process_has_no_hooks() -> None:
    with Bench(load_task("rotation")) as bench:
        stepper = bench.stepper()
        stepper.learn(bench.transformed(stepper))
    assert stepper.buckets is None
    assert not any(parameter._post_accumulate_grad_hooks for parameter in stepper.task.parameters())


def with_compiled_blocks(world: World) -> dict[str, Any]:
    """Compare gradients with eager ones; note the buckets on their way when the backward pass reaches the first block."""
    from torch._dynamo.utils import counters

    with Bench(load_task("simclr")) as bench:
        stepper = bench.stepper(world=world)
        task = stepper.task.double()  # in float32, rounding alone makes a difference of 1e-3
        batch = bench.transformed(stepper, world.share(8))
    buckets, started = GradientBuckets(task, world, (1024, 4096)), list[int]()
    first_block = task.get_submodule("encoder.blocks.0")
    first_block.register_forward_hook(
        lambda module, inputs, output: output.register_hook(lambda gradient: started.append(buckets.started)) and None
    )
    by_mode, graphs = [], []
    for compile in (False, True):
        machine = Machine(CPU, None, compile=compile, compile_required=True, world=world)
        predict = Predict(task, machine)
        for step in range(3):
            task.zero_grad(set_to_none=True)
            with buckets.exchange(1, int(compile)), predict.in_step():
                compute_gradients(MicroBatches(task, predict, machine, batch, 4, 0, step), lambda loss: loss)
            graphs.append(counters["stats"]["unique_graphs"])
        by_mode.append(gradients(task))
    eager, compiled = (torch.cat([gradient.flatten() for gradient in by_name.values()]) for by_name in by_mode)
    difference = float((compiled - eager).norm() / eager.norm())
    return {"started": started, "buckets": len(buckets._buckets), "graphs": graphs, "difference": difference}


@pytest.mark.slow
def test_compiled_blocks_do_not_hold_back_the_exchange() -> None:
    for result in run_in_two(with_compiled_blocks):
        assert result["graphs"][3:] == [7, 7, 7]  # stem, its norm, four blocks and the head, compiled in the first step
        assert 0 < result["started"][-1] < result["buckets"]
        assert result["difference"] < 1e-8
