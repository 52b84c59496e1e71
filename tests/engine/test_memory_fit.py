"""Memory: what is free, what a step takes, and how many samples at once fit."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit.contract.errors import SslkitError
from sslkit.contract.task import Clock
from sslkit.engine import memory, memory_fit
from sslkit.engine.job import build_task
from sslkit.engine.memory_fit import StepMemory, choose_micro_batch, measure_memory
from sslkit.engine.pretrain import prepare
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import PretrainSpec

CPU = torch.device("cpu")
measures_memory = pytest.mark.skipif(memory.free_memory(CPU) is None, reason="this system does not report memory")


def stepper_of(data: Path, out: Path, **changes: Any) -> Stepper:
    settings = {"task": "simclr", "batch_size": 48, "steps": 2, **changes}
    job = prepare(PretrainSpec.model_validate({"data": str(data), "out": str(out), **settings}))
    stepper = Stepper(build_task(job, initialize=True), job.settings, Clock(steps=2))
    stepper.before_epoch(0)
    return stepper


@measures_memory
def test_growth_is_what_a_function_takes_at_most() -> None:
    for megabytes in (64, 32, 128):  # memory that was freed before does not hide what is used now
        growth = memory.peak_growth(CPU, lambda size=megabytes: torch.ones(size * 250_000).sum())  # type: ignore[misc]
        assert growth is not None and abs(growth / 1e6 - megabytes) < 8


def test_arithmetic() -> None:
    step = StepMemory(transform=30, batch=2, network=10, fixed=100)
    assert step.of(8, 8) == 100 + 8 * 30  # the transform of the whole batch takes most
    assert step.of(8, 1) == 100 + 8 * 30
    assert StepMemory(1, 2, 10, 100).of(8, 4) == 100 + 8 * 2 + 4 * 10


@measures_memory
def test_the_whole_batch_if_it_fits(digits: Path, tmp_path: Path) -> None:
    size, reason = choose_micro_batch(stepper_of(digits, tmp_path))
    assert size == 48 and reason.startswith("the whole batch takes about")


@measures_memory
def test_nothing_changes_by_measuring(digits: Path, tmp_path: Path) -> None:
    stepper = stepper_of(digits, tmp_path, precision="fp32")
    before = {name: value.clone() for name, value in stepper.task.state_dict().items()}
    measured = measure_memory(stepper)
    assert measured is not None and measured.network > 0 and measured.batch == 2 * 3 * 32 * 32 * 4
    assert all(torch.equal(value, before[name]) for name, value in stepper.task.state_dict().items())
    assert all(parameter.grad is None for parameter in stepper.task.parameters())
    assert stepper.clock.step == 0


def pretend(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    """Let steps take 1 MB for each sample at once, on a machine with so much memory."""
    monkeypatch.setattr(memory_fit, "free_memory", lambda device: free)
    monkeypatch.setattr(memory_fit, "measure_memory", lambda stepper: StepMemory(1000, 1000, 1e6, 1e6))


@pytest.mark.parametrize(("free", "size"), [(70e6, 48), (60e6, 32), (30e6, 16), (10e6, 4)])
def test_the_largest_power_of_two_that_fits(
    free: int, size: int, monkeypatch: pytest.MonkeyPatch, digits: Path, tmp_path: Path
) -> None:
    pretend(monkeypatch, free)
    stepper = stepper_of(digits, tmp_path, encoder="vit_micro", options={"norm": "layer"})
    assert choose_micro_batch(stepper)[0] == size


def test_batchnorm_keeps_32_samples(
    monkeypatch: pytest.MonkeyPatch, digits: Path, tmp_path: Path, sslkit: Callable[..., Any], quick: list[str]
) -> None:
    pretend(monkeypatch, 60_000_000)
    assert choose_micro_batch(stepper_of(digits, tmp_path))[0] == 32
    pretend(monkeypatch, 30_000_000)
    with pytest.raises(SslkitError, match=r"a step takes about 33 MB with 32 samples at once, and 30 MB are free") as refused:
        choose_micro_batch(stepper_of(digits, tmp_path))
    assert "use a smaller --size, a smaller --batch-size or --encoder-option norm=group" in str(refused.value)
    arguments = ["simclr", "--data", digits, "--out", tmp_path / "run", "--steps", 2, *quick, "--batch-size", 48]
    ran = sslkit("pretrain", *arguments)
    assert ran.code == 2 and "--micro-batch: a step takes about 33 MB" in ran.err
    assert not (tmp_path / "run").exists()


def test_flags_against_batchnorm(monkeypatch: pytest.MonkeyPatch, digits: Path, tmp_path: Path) -> None:
    pretend(monkeypatch, 30_000_000)
    with pytest.raises(SslkitError, match="or --encoder-option norm=group and --norm layer, so that fewer samples may be"):
        choose_micro_batch(stepper_of(digits, tmp_path, task="byol"))
    with pytest.raises(SslkitError, match="or --encoder-option norm=group, so that fewer samples may be computed at once"):
        choose_micro_batch(stepper_of(digits, tmp_path, task="byol", options={"norm": "layer"}))
    without = {"encoder_option": {"norm": "group"}, "options": {"norm": "layer"}}
    assert choose_micro_batch(stepper_of(digits, tmp_path, task="byol", **without))[0] == 16


def test_the_number_is_recorded_and_kept(
    monkeypatch: pytest.MonkeyPatch, digits: Path, tmp_path: Path, sslkit: Callable[..., Any], quick: list[str]
) -> None:
    pretend(monkeypatch, 60_000_000)
    out = tmp_path / "run"
    arguments = ["simclr", "--data", digits, "--out", out, "--epochs", 1, *quick, "--batch-size", 48, "--size", 16]
    ran = sslkit("pretrain", *arguments)
    assert "micro-batch    32: the whole batch takes about 49 MB of 60 MB free, this 33 MB" in ran.err
    assert '"micro_batch": 32' in (out / "spec.json").read_text()
    pretend(monkeypatch, 10**12)
    assert "micro-batch" not in sslkit("pretrain", "simclr", "--out", out, "--extend-to", 2).err
    assert '"micro_batch": 32' in (out / "spec.json").read_text()
