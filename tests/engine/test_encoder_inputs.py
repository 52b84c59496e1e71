"""Views that only encoders read are stored in the precision these run in."""

import pytest
import torch
from torch import Tensor

from sslkit.engine.micro_batches import named_terms, total_loss, widen
from sslkit.engine.stepper import Stepper
from sslkit.tasks.joint import joint_task
from sslkit.tasks.load import load_task
from sslkit.testing.bench import Bench


def loss_and_output(stepper: Stepper, batch: dict[str, Tensor]) -> tuple[float, Tensor]:
    torch.manual_seed(0)
    with torch.no_grad():
        with stepper.machine.autocast():
            output = widen(stepper.task.predict(batch))
        loss = float(total_loss(named_terms(stepper.task.loss(output, batch))))
    return loss, output if isinstance(output, Tensor) else output["student"]


@pytest.mark.parametrize("name", ["simclr", "dino"])
def test_half_precision_views_change_the_loss_less_than_autocast_does(name: str) -> None:
    with Bench(load_task(name)) as bench:
        stepper = bench.stepper("bf16")
        stored, exact = stepper.transformed(bench.raw(stepper)), bench.transformed(stepper)
        for key in stepper.task.encoder_inputs:
            assert stored[key].dtype == torch.bfloat16 and exact[key].dtype == torch.float32
            assert torch.equal(stored[key], exact[key].bfloat16())
        stepper.task.eval()
        (loss, output), (expected, reference) = (loss_and_output(stepper, dict(batch)) for batch in (stored, exact))
        _, single = loss_and_output(bench.stepper("fp32"), dict(exact))
        error, autocast_error = (float((value - reference).norm() / reference.norm()) for value in (output, single))
        assert loss == pytest.approx(expected, rel=2e-3)
        assert error < max(autocast_error, 5e-3)


@pytest.mark.parametrize(("name", "target"), [("mae", "image"), ("colorization", "image"), ("vae", "image")])
def test_targets_stay_in_single_precision(name: str, target: str) -> None:
    with Bench(load_task(name)) as bench:
        stepper = bench.stepper("bf16")
        assert stepper.transformed(bench.raw(stepper))[target].dtype == torch.float32


def test_a_joint_task_keeps_the_names_of_its_tasks() -> None:
    task = joint_task({name: load_task(name) for name in ("simclr", "rotation")})
    assert task.encoder_inputs == ("simclr.image",)
    with Bench(task) as bench:
        stepper = bench.stepper("bf16")
        batch = stepper.transformed(bench.raw(stepper))
        assert (batch["simclr.image"].dtype, batch["rotation.image"].dtype) == (torch.bfloat16, torch.float32)


def test_without_autocast_nothing_is_rounded() -> None:
    with Bench(load_task("simclr")) as bench:
        stepper = bench.stepper()
        assert stepper.transformed(bench.raw(stepper))["image"].dtype == torch.float32
