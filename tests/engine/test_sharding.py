"""Processes that keep a part of the weights each learn like one process that has all of them."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sslkit import SslkitError
from sslkit.contract.task import Clock, rows
from sslkit.engine.parallel import ALONE, World
from sslkit.engine.precision import choose_machine
from sslkit.engine.stepper import Stepper
from sslkit.tasks.load import load_task
from sslkit.testing.bench import Bench
from tests.processes import run_in_two

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "mae": ("mae", {}),
    "rotation": ("rotation", {"optimizer": "adamw", "lr": 1e-3}),
    "byol": ("byol", {"clip": 0.1}),
    "dino": ("dino", {"optimizer": "adamw", "lr": 1e-3, "clip": 0.1, "clip_by": "parameter"}),
    "simclr": ("simclr", {}),
    "coupled micro-batches": ("simclr", {"micro_batch": 2}),
    "uncoupled micro-batches": ("moco", {"micro_batch": 2}),
    "batchnorm": ("simclr", {}),
    "lars": ("simclr", {"optimizer": "lars", "lr": 1.0}),
}


def build(bench: Bench, world: World, shard: bool, case: str) -> Stepper:
    _, changes = CASES[case]
    with_batchnorm = case == "batchnorm"
    stepper, spec = bench._build(not with_batchnorm, 1, world)
    sync = "on" if with_batchnorm and world.size > 1 else "off"
    machine = choose_machine("cpu", sync_batchnorm=sync, world=world, shard=shard)
    settings = replace(stepper.settings, spec=spec.model_copy(update=changes), machine=machine)
    return Stepper(stepper.task.double(), settings, Clock(steps=1000))


def learn(bench: Bench, stepper: Stepper) -> None:
    share = stepper.world.share(8)
    stepper.learn(rows(bench.transformed(stepper), share.start, share.stop))


def run(world: World, case: str) -> dict[str, Any]:
    """Return the state after two steps, and the features."""
    with Bench(load_task(CASES[case][0])) as bench:
        stepper = build(bench, world, world.size > 1, case)
        stepper.before_epoch(0)
        learn(bench, stepper)
        learn(bench, stepper)
        state, features = copy.deepcopy(stepper.state()), stepper.features()
        if world.size > 1:
            assert any(isinstance(parameter, DTensor) for parameter in stepper.task.encoder.parameters())
            resume(bench, stepper, case, state)
    return {"task": state["task"], "optimizer": state["optimizer"], "features": features}


def resume(bench: Bench, stepper: Stepper, case: str, state: dict[str, Any]) -> None:
    """Take a step more, and the same step in runs that resume with and without sharding."""
    learn(bench, stepper)
    expected = stepper.state()
    for shard in (True, False):
        resumed = build(bench, stepper.world, shard, case)
        resumed.load_state(copy.deepcopy(state))
        assert not differences(resumed.state(), state, 0)  # what it would write is what it has read
        learn(bench, resumed)
        different = differences(resumed.state(), expected, 0 if shard else 1e-10)
        assert not different, (case, shard, different)


def differences(actual: dict[str, Any], expected: dict[str, Any], tolerance: float) -> list[str]:
    """Return the names of what differs; which kernels an optimizer has does not count."""
    first, second = flat(actual), flat(expected)
    different = first.keys() ^ second.keys()
    for name in first.keys() & second.keys():
        if isinstance(first[name], Tensor):
            bound = max(tolerance, 1e-5) if name == ".features" else tolerance
            alike = torch.allclose(first[name], second[name], rtol=bound, atol=bound)
        else:
            alike = first[name] == second[name] or name.endswith(".fused")
        different |= set() if alike else {name}
    return sorted(different)


def flat(value: Any, name: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for inner in value for key, leaf in flat(value[inner], f"{name}.{inner}").items()}
    if isinstance(value, list):
        return flat(dict(enumerate(value)), name)
    return {name: value}


def in_all_cases(world: World) -> dict[str, Any]:
    return {case: run(world, case) for case in CASES}


@pytest.mark.slow
def test_two_processes_learn_like_one() -> None:
    first, second = run_in_two(in_all_cases)
    for case in CASES:
        alone = run(ALONE, case)
        for result in (first, second):
            assert not differences(result[case], alone, 1e-10), case


def test_what_sharding_does_not_go_with() -> None:
    with pytest.raises(SslkitError, match=r"--shard: there is 1 process.*leave it out"):
        choose_machine("cpu", shard=True)
    assert choose_machine("cpu", world=World(0, 2), shard=True).shard
