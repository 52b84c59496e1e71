"""Joint-embedding tasks: targets, learning rates, and what prevents collapse."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sslkit import Clock, DataInfo
from sslkit.encoders.builder import RecipeBuilder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.optimizer import build_optimizer, follow_schedules
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import load_task
from tests.canvases import canvases


@pytest.mark.parametrize("name", ["byol", "simsiam"])
def test_each_view_predicts_the_other_whose_gradient_is_stopped(build: Callable[..., Any], name: str) -> None:
    task = build(name).train()
    output = task.predict(task.transform(canvases(torch.rand(4, 3, 36, 36))))
    assert output["prediction"].requires_grad and not output["target"].requires_grad
    target = F.normalize(torch.randn(4, 2, 8), dim=2)
    crossed = {"prediction": target.flip(1), "target": target}
    assert float(task.loss(crossed, {})) == pytest.approx({"byol": 0.0, "simsiam": -1.0}[name], abs=1e-6)


def test_byol_adds_both_directions(build: Callable[..., Any]) -> None:
    output = {name: torch.randn(5, 2, 8) for name in ("prediction", "target")}
    unit = {name: F.normalize(value, dim=2) for name, value in output.items()}
    total = sum(
        float((unit["prediction"][i, view] - unit["target"][i, 1 - view]).square().sum()) for i in range(5) for view in (0, 1)
    )
    assert float(build("byol").loss(output, {})) == pytest.approx(total / 5, rel=1e-5)


def test_simsiam_output_norm_has_no_scale_and_shift(build: Callable[..., Any]) -> None:
    norms = [layer for layer in build("simsiam").head if isinstance(layer, torch.nn.BatchNorm1d)]
    assert [norm.affine for norm in norms] == [True, True, False]


def test_simsiam_predictor_keeps_its_learning_rate(build: Callable[..., Any]) -> None:
    task = build("simsiam")
    spec = PretrainSpec(task="simsiam", data="x", optimizer="sgd", lr=0.1, warmup=0.0, steps=10)
    optimizer = build_optimizer(task, spec, steps_per_epoch=10)
    follow_schedules(optimizer, spec, Clock(step=9, steps=10))
    predictor = {id(parameter) for parameter in task.predictor.parameters()}
    rates = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    assert all((rate == 0.1) == (parameter in predictor) for parameter, rate in rates.items())


def test_barlow_twins_of_equal_uncorrelated_dimensions_is_zero(build: Callable[..., Any]) -> None:
    task = build("barlow_twins")
    square = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])
    terms = task.loss(torch.stack([square, square], dim=1), {})
    assert float(terms["invariance"]) < 1e-6 and float(terms["redundancy"]) < 1e-6
    twice = square[:, :1].expand(-1, 2)  # both dimensions are identical
    assert float(task.loss(torch.stack([twice, twice], dim=1), {})["redundancy"]) == pytest.approx(0.1 * 0.005 * 2, rel=1e-3)


def test_vicreg_weights_its_terms(build: Callable[..., Any]) -> None:
    output = torch.randn(6, 2, 8)
    plain, weighted = (
        build("vicreg", invariance=a, variance=b, covariance=c).loss(output, {}) for a, b, c in ((1, 1, 1), (3, 0, 0.5))
    )
    for name, weight in (("invariance", 3.0), ("variance", 0.0), ("covariance", 0.5)):
        assert float(weighted[name]) == pytest.approx(weight * float(plain[name]), rel=1e-5)


def test_dino_center_follows_the_teachers_output(build: Callable[..., Any]) -> None:
    task = build("dino", outputs=16, centering=0.75).train()
    batch = task.transform(canvases(torch.rand(4, 3, 36, 36)))
    assert batch["image"].shape == (4, 2, 3, 32, 32) and batch["small"].shape == (4, 2, 3, 16, 16)
    output = task.predict(batch)
    assert output["student"].shape == (4, 4, 16) and not output["teacher"].requires_grad
    halves = [
        task.remember({name: value[part] for name, value in output.items()}, batch) for part in (slice(0, 3), slice(3, 4))
    ]
    task.after_step({name: torch.cat([half[name] for half in halves]) for name in halves[0]})
    assert torch.allclose(task.center, 0.25 * output["teacher"].mean(dim=(0, 1)), atol=1e-6)


def test_dino_teacher_temperature_rises(build: Callable[..., Any]) -> None:
    task = build("dino", outputs=4, teacher_temperature=0.08, first_teacher_temperature=0.04, rise=10)
    output = {"teacher": torch.tensor([[[0.1, 0.0, 0.0, 0.0]]])}
    for epoch, temperature in ((0, 0.04), (5, 0.06), (10, 0.08), (50, 0.08)):
        task.clock = Clock(epoch=epoch)
        ratio = task._target(output)[0, 0, 0] / task._target(output)[0, 0, 1]
        assert math.log(float(ratio)) == pytest.approx(0.1 / temperature, rel=1e-4)


def test_dino_last_layer_has_unit_length_weights(build: Callable[..., Any]) -> None:
    task = build("dino", outputs=4).eval()
    with torch.no_grad():
        features = torch.randn(3, task.encoder.width)
        output = task.head(features)
        task.head[1].weight.mul_(7)
        assert torch.allclose(task.head(features), output, atol=1e-6)
    assert output.abs().max() <= 1 + 1e-6


def msn(**options: Any) -> Any:
    task_class, data = load_task("msn"), DataInfo(64, 32)
    recipe = recipe_for("vit_micro", 32, 3, {"width": "32", "depth": "2"})
    return task_class(task_class.Options(**options), RecipeBuilder(recipe, data)(), data)


def test_msn_prototypes_are_not_decayed() -> None:
    task = msn()
    spec = PretrainSpec(task="msn", data="x", weight_decay=0.04, weight_decay_end=0.4, warmup=0.0, steps=10)
    optimizer = build_optimizer(task, spec, steps_per_epoch=10)
    for step in (0, 9):
        follow_schedules(optimizer, spec, Clock(step=step, steps=10))
        decays = {id(parameter): group["weight_decay"] for group in optimizer.param_groups for parameter in group["params"]}
        assert decays[id(task.prototypes.weight)] == 0
        assert decays[id(task.head[0].weight)] == pytest.approx({0: 0.04, 9: 0.4}[step])


def test_msn_masked_view_lacks_patches_and_the_target_does_not() -> None:
    task = msn(crops="2+3", drop=0.25).eval()
    batch = task.transform(canvases(torch.rand(2, 3, 36, 36)))
    assert batch["keep"].shape == (2, 48) and all(len(set(row)) == 48 for row in batch["keep"].tolist())
    output = task.predict(batch)
    assert output["anchor"].shape == (2, 4, 256) and output["target"].shape == (2, 256) and not output["target"].requires_grad
    changed = {**batch, "image": batch["image"].clone()}
    dropped = next(patch for patch in range(64) if patch not in batch["keep"][0].tolist())
    row, column = dropped // 8 * 4, dropped % 8 * 4
    changed["image"][0, :, :, row : row + 4, column : column + 4] = 1
    again = task.predict(changed)
    assert torch.allclose(again["anchor"], output["anchor"], atol=1e-5)
    assert not torch.allclose(again["target"][0], output["target"][0], atol=1e-5)
    images = task.preview(batch, None)
    assert images.shape == (2, 5, 3, 32, 32)
    assert torch.allclose(images[0, 1, :, row : row + 4, column : column + 4], torch.tensor(0.5))


def test_msn_targets_use_all_prototypes_equally() -> None:
    torch.manual_seed(0)
    even, plain = msn(prototypes=4), msn(prototypes=4, sinkhorn=False)
    plain.prototypes.load_state_dict(even.prototypes.state_dict())
    output = {
        "target": F.normalize(torch.randn(64, 256) / 16 + 2 * F.normalize(even.prototypes.weight[0].detach(), dim=0), dim=1)
    }
    assert plain._target(output).mean(dim=0)[0] > 0.9
    assert torch.allclose(even._target(output).mean(dim=0), torch.full((4,), 0.25), atol=0.05)


def test_msn_entropy_gap_is_zero_when_all_prototypes_are_used() -> None:
    task = msn(prototypes=4, temperature=0.01, sinkhorn=False)
    vectors = task.prototypes.requires_grad_(False).weight
    spread = task.loss({"anchor": vectors[:, None], "target": vectors}, {})
    collapsed = task.loss({"anchor": vectors[:1, None].expand(4, 1, -1), "target": vectors[:1].expand(4, -1)}, {})
    assert float(spread["entropy_gap"]) == pytest.approx(0, abs=1e-3) and float(spread["cross_entropy"]) < 1e-3
    assert float(collapsed["entropy_gap"]) == pytest.approx(math.log(4), rel=1e-3)
