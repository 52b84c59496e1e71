"""Gradients of micro-batches, optimizers, schedules, precision and seeds."""

import copy
import math
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit import Batch, Clock, DataInfo, PretextTask
from sslkit.contract.errors import SslkitError
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine import precision
from sslkit.engine.compilation import Predict
from sslkit.engine.lars import Lars
from sslkit.engine.micro_batches import MicroBatches, compute_gradients
from sslkit.engine.optimizer import build_optimizer, clip_gradients, follow_schedules, warmup_cosine
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.seeds import seed_stage
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import load_task
from tests.canvases import canvases


class Ragged(PretextTask):
    """Has a sum over a varying number of pixels beside a mean, and remembers its outputs."""

    def build_head(self) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.3), nn.Linear(self.encoder.width, 4))

    def transform(self, batch: Batch) -> Batch:
        return {
            "image": batch["canvas"][..., :16, :16],
            "mask": torch.rand(len(batch["canvas"]), 4, device=batch["canvas"].device) < 0.5,
        }

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"masked": (output.square() * batch["mask"]).sum(), "plain": output.mean()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        return {"masked": batch["mask"].sum()}

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        return {"output": output}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {"first": output[:, 0]}


class Coupled(Ragged):
    couples_samples = True

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        return {
            "covariance": (output.T @ output).square().sum() * self.weight,
            "masked": Ragged.loss(self, output, batch)["plain"],
        }

    def setup(self) -> None:
        self.weight = nn.Parameter(torch.tensor(2.0))


def task_of(kind: str | type[PretextTask], **options: Any) -> PretextTask:
    """Build in float64 on an encoder without BatchNorm, with drop path in it."""
    task_class = load_task(kind) if isinstance(kind, str) else kind
    seed_stage(0, "build", 0)
    encoder = build_encoder(recipe_for("vit_micro", 16, options={"width": "16", "depth": "2", "heads": "2"}))
    return task_class(task_class.Options(**options), encoder, DataInfo(8, 16)).double().train()


def gradients(task: PretextTask, micro_batch: int, machine: Machine | None = None) -> tuple[dict[str, Tensor], Any]:
    task = copy.deepcopy(task)
    seed_stage(0, "transform", 0)
    images = torch.rand(8, 3, 20, 20, generator=torch.Generator().manual_seed(0)).to(next(task.parameters()))
    with torch.no_grad():
        batch = task.transform(canvases(images, index=torch.arange(8)))
    micro_batches = MicroBatches(task, task.predict, machine or choose_machine("cpu"), batch, micro_batch, 0, 0)
    report = compute_gradients(micro_batches, lambda loss: loss)
    return {name: parameter.grad for name, parameter in task.named_parameters() if parameter.grad is not None}, report


@pytest.mark.parametrize(
    ("kind", "options"), [("rotation", {}), ("simclr", {"norm": "layer"}), ("simclr", {"norm": "none", "projector": "linear"})]
)
@pytest.mark.parametrize("micro_batch", [2, 3])
def test_micro_batches_change_nothing_but_rounding(kind: str, options: dict[str, Any], micro_batch: int) -> None:
    task = task_of(kind, **options)
    (whole, report), (pieced, pieced_report) = gradients(task, 8), gradients(task, micro_batch)
    assert whole.keys() == pieced.keys() and len(whole) > 10
    scale = max(float(gradient.abs().max()) for gradient in whole.values())
    for name in whole:
        assert float((whole[name] - pieced[name]).abs().max()) < 1e-10 * scale, name
    assert report.terms.keys() == pieced_report.terms.keys()
    for name in report.terms:
        assert float(report.terms[name]) == pytest.approx(float(pieced_report.terms[name]), rel=1e-10)
    for name in report.metrics:
        assert torch.allclose(report.metrics[name], pieced_report.metrics[name])


def test_sums_and_means_in_micro_batches() -> None:
    task = task_of(Ragged).eval()  # dropout draws per micro-batch: only its absence can be compared
    (whole, report), (pieced, pieced_report) = gradients(task, 8), gradients(task, 3)
    for name in whole:
        assert torch.allclose(whole[name], pieced[name], rtol=1e-9, atol=1e-12), name
    assert torch.allclose(report.remembered["output"], pieced_report.remembered["output"])
    assert len(report.metrics["first"]) == len(pieced_report.metrics["first"]) == 8


def test_nothing_counted_is_no_gradient() -> None:
    class Nothing(Ragged):
        def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
            return {"masked": (output * 0 * batch["mask"]).sum()}

        def counts(self, batch: Batch) -> dict[str, Tensor]:
            return {"masked": 0 * batch["mask"].sum()}

    values, report = gradients(task_of(Nothing), 3)
    assert float(report.terms["masked"]) == 0 and not any(gradient.any() for gradient in values.values())


def test_parameters_of_a_coupled_loss_get_their_gradient_once() -> None:
    task = task_of(Coupled).eval()
    whole, pieced = gradients(task, 8)[0], gradients(task, 3)[0]
    assert "weight" in whole
    for name in whole:
        assert torch.allclose(whole[name], pieced[name], rtol=1e-9, atol=1e-12), name


_DROP_PATH = {"embed_dim": "16", "depth": "2", "num_heads": "2", "patch_size": "4", "drop_path_rate": "0.5"}


@pytest.mark.parametrize("dropped", ["units", "paths"])
def test_both_passes_drop_the_same(dropped: str) -> None:
    """With fixed masks per micro-batch, the gradient is that of the loss the first pass saw."""
    if dropped == "units":
        task, name = task_of(Coupled), "head.1.weight"
    else:
        encoder = build_encoder(recipe_for("vit_tiny_patch16_224", 16, options=_DROP_PATH))
        task = Coupled(Coupled.Options(), encoder, DataInfo(8, 16)).double().train()
        task.head[0] = nn.Identity()
        name = "encoder.model.blocks.1.mlp.fc2.weight"
    grads, report = gradients(task, 3)
    direction = torch.randn(grads[name].shape, generator=torch.Generator().manual_seed(1), dtype=torch.double)
    step, losses = 1e-6, []
    for sign in (1, -1):
        moved = copy.deepcopy(task)
        with torch.no_grad():
            dict(moved.named_parameters())[name].add_(sign * step * direction)
        losses.append(sum(float(term) for term in gradients(moved, 3)[1].terms.values()))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(float((grads[name] * direction).sum()), rel=1e-4)
    assert report.terms.keys() == {"covariance", "masked"}


@pytest.mark.parametrize(
    ("kind", "options"), [("rotation", {}), ("simclr", {"norm": "layer"}), ("moco", {"norm": "layer"}), ("mae", {})]
)
def test_micro_batches_under_autocast(kind: str, options: dict[str, Any]) -> None:
    """Half precision rounds, but it rounds rows alike in whatever company they are."""
    task = task_of(kind, **options).float()
    whole, pieced = (gradients(task, size, choose_machine("cpu", "bf16"))[0] for size in (8, 3))
    expected, actual = (torch.cat([value.flatten() for value in values.values()]) for values in (whole, pieced))
    assert float((expected - actual).norm() / expected.norm()) < 0.02


def test_norm_statistics_move_once_however_many_micro_batches() -> None:
    class Normed(Coupled):
        def build_head(self) -> nn.Module:
            return nn.Sequential(nn.BatchNorm1d(self.encoder.width), nn.Linear(self.encoder.width, 4))

    seed_stage(0, "build", 0)
    encoder = build_encoder(recipe_for("vit_micro", 16, options={"width": "16", "depth": "1", "heads": "2"}))
    task = Normed(Normed.Options(), encoder, DataInfo(8, 16)).train()
    micro_batches = MicroBatches(task, task.predict, choose_machine("cpu"), {"image": torch.rand(8, 3, 16, 16)}, 4, 0, 0)
    task_counts = [buffer for name, buffer in task.named_buffers() if name.endswith("num_batches_tracked")]
    batch = task.transform(canvases(torch.rand(8, 3, 16, 16)))
    compute_gradients(MicroBatches(**{**micro_batches.__dict__, "batch": batch}), lambda loss: loss)
    assert [int(count) for count in task_counts] == [2]  # once per micro-batch


def spec(**changes: Any) -> PretrainSpec:
    return PretrainSpec(task="x", **changes)


def test_biases_and_norms_are_not_decayed() -> None:
    task = task_of("rotation")
    optimizer = build_optimizer(task, spec(weight_decay=0.1), 1)
    decayed = {id(p) for group in optimizer.param_groups if group["peak_weight_decay"] for p in group["params"]}
    for name, parameter in task.named_parameters():
        assert (id(parameter) in decayed) == (parameter.dim() > 1), name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(task.parameters()))


@pytest.mark.parametrize("name", ["sgd", "adamw", "lars"])
def test_optimizers_lower_the_loss(name: str) -> None:
    task = task_of("rotation").float()
    optimizer = build_optimizer(task, spec(optimizer=name, lr=0.01), 1)
    image = torch.rand(4, 4, 3, 16, 16)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = task.loss(task.predict({"image": image}), {})
        assert isinstance(loss, Tensor)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_lars_moves_every_weight_by_its_share(weight_decay: float) -> None:
    class Prototypes(Ragged):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": self.head.parameters(), "weight_decay": 0.0}]

    task = task_of(Prototypes)
    optimizer = build_optimizer(task, spec(optimizer="lars", lr=4.8, weight_decay=weight_decay), 1)
    before = {name: value.detach().clone() for name, value in task.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for parameter in task.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    optimizer.param_groups[0]["weight_decay"] = weight_decay
    optimizer.step()
    for name, parameter in task.named_parameters():
        if parameter.dim() > 1 and before[name].any():
            relative = float((parameter.detach() - before[name]).norm() / before[name].norm())
            assert relative == pytest.approx(4.8 * 0.001, rel=1e-9), name
        else:
            assert parameter.grad is not None
            assert torch.allclose(parameter, before[name] - 4.8 * parameter.grad), name


@pytest.mark.parametrize("nesterov", [False, True])
def test_lars_is_the_algorithm(nesterov: bool) -> None:
    """Three steps of a loop as the authors of MoCo v3 write it, over one weight and one bias."""
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(4, 3, generator=generator)), nn.Parameter(torch.randn(4, generator=generator))]
    expected, velocity = [p.detach().clone() for p in parameters], [torch.zeros(4, 3), torch.zeros(4)]
    optimizer = Lars(parameters, lr=0.5, momentum=0.9, weight_decay=0.1, nesterov=nesterov)
    for _ in range(3):
        for place, parameter in enumerate(parameters):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = gradient.clone()
            step = gradient + 0.1 * expected[place]
            if parameter.dim() > 1:
                step = step * 0.001 * expected[place].norm() / step.norm()
            velocity[place] = 0.9 * velocity[place] + step
            expected[place] = expected[place] - 0.5 * (step + 0.9 * velocity[place] if nesterov else velocity[place])
        optimizer.step()
    for parameter, value in zip(parameters, expected, strict=True):
        assert torch.allclose(parameter, value, rtol=1e-6)


@pytest.mark.parametrize(("name", "changes"), [("sgd", {"nesterov": True}), ("adamw", {"betas": "0.5,0.6"}), ("lars", {})])
def test_a_step_that_found_inf_changes_nothing(name: str, changes: dict[str, Any]) -> None:
    """Torch's fused kernels and ours look at the flag; weights with the channels last are those of a convolution."""
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(3, 4, 2, 2, generator=generator).to(memory_format=torch.channels_last))
    task = task_of(Ragged)
    task.encoder, task.head = nn.Identity(), nn.ParameterList([weight, nn.Parameter(torch.zeros(3))])  # type: ignore[assignment]
    optimizer = build_optimizer(task, spec(optimizer=name, lr=0.1, **changes), 1)

    def step(value: float, found_inf: float) -> list[Tensor]:
        for parameter in task.parameters():
            parameter.grad = torch.full_like(parameter, value) * parameter.detach().sign().add(0.5)
        optimizer.found_inf = torch.tensor(found_inf)
        optimizer.step()
        return [parameter.detach().clone() for parameter in task.parameters()]

    start = [parameter.detach().clone() for parameter in task.parameters()]
    assert all(map(torch.equal, step(math.nan, 1.0), start))  # the first step of all
    first = step(1.0, 0.0)
    assert not any(map(torch.equal, first, start))
    assert all(map(torch.equal, step(math.inf, 1.0), first))
    second = step(1.0, 0.0)
    assert all(torch.isfinite(value).all() for value in second) and not any(map(torch.equal, second, first))


def test_learning_rates_follow_the_batch() -> None:
    class Special(Ragged):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": self.head.parameters(), "lr": 0.5}]

    for scale, factor in (("none", 1), ("linear", 4), ("sqrt", 2)):
        optimizer = build_optimizer(task_of(Special), spec(lr=0.1, lr_scale=scale, batch_size=1024), 1)
        assert {group["peak_lr"] for group in optimizer.param_groups} == {0.1 * factor, 0.5 * factor}


def test_optimizer_settings_reach_the_optimizer() -> None:
    adamw = build_optimizer(task_of("rotation"), spec(betas="0.9,0.95"), 1)
    assert all(group["betas"] == (0.9, 0.95) for group in adamw.param_groups)
    for name in ("sgd", "lars"):
        optimizer = build_optimizer(task_of("rotation"), spec(optimizer=name, sgd_momentum=0.8, nesterov=True), 1)
        assert all(group["momentum"] == 0.8 and group["nesterov"] for group in optimizer.param_groups)
    with pytest.raises(SslkitError, match="Nesterov momentum needs a momentum"):
        build_optimizer(task_of("rotation"), spec(optimizer="sgd", sgd_momentum=0.0, nesterov=True), 1)


def test_gradients_are_clipped_one_by_one() -> None:
    task = task_of("rotation")
    optimizer = build_optimizer(task, spec(), 1)
    for place, parameter in enumerate(task.parameters()):
        parameter.grad = torch.full_like(parameter, 1e-3 if place % 2 else 10.0)
    before = torch.cat([parameter.grad.flatten() for parameter in task.parameters() if parameter.grad is not None]).norm()
    norm = clip_gradients(optimizer, 3.0, by="parameter")
    assert float(norm) == pytest.approx(float(before))
    for place, parameter in enumerate(task.parameters()):
        assert parameter.grad is not None
        if place % 2:
            assert torch.equal(parameter.grad, torch.full_like(parameter, 1e-3))
        else:
            assert float(parameter.grad.norm()) == pytest.approx(3.0, rel=1e-5)


def test_exceptions_override_and_freeze() -> None:
    class Special(Ragged):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": self.head.parameters(), "lr": 0.5, "weight_decay": 0.0, "frozen_epochs": 2}]

    task = task_of(Special)
    optimizer = build_optimizer(task, spec(lr=0.1, warmup=0.0, weight_decay=0.2, weight_decay_end=0.4), steps_per_epoch=3)
    head = {id(parameter) for parameter in task.head.parameters()}
    for step, frozen in ((5, True), (6, False)):
        for parameter in task.parameters():
            parameter.grad = torch.ones_like(parameter)
        share = follow_schedules(optimizer, spec(lr=0.1, warmup=0.0, weight_decay=0.2, weight_decay_end=0.4), Clock(step, 20))
        for group in optimizer.param_groups:
            special = id(group["params"][0]) in head
            assert group["lr"] == pytest.approx((0.5 if special else 0.1) * share)
            assert all((parameter.grad is None) == (special and frozen) for parameter in group["params"])
            if not special and group["follows_weight_decay"]:
                assert 0.2 < group["weight_decay"] < 0.4


def test_groups_are_clipped_apart() -> None:
    class Adversary(Ragged):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": list(self.head.parameters())}]

    task = task_of(Adversary)
    optimizer = build_optimizer(task, spec(), 1)
    for parameter in task.parameters():
        parameter.grad = torch.full_like(parameter, 1e-6)
    for parameter in task.head.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    norm = clip_gradients(optimizer, 1.0)
    assert float(norm) > 100
    assert all(torch.equal(p.grad, torch.full_like(p, 1e-6)) for p in task.encoder.parameters() if p.grad is not None)
    clipped = torch.cat([p.grad.flatten() for p in task.head.parameters() if p.grad is not None])
    assert float(clipped.norm()) == pytest.approx(1, rel=1e-4)


def test_schedule() -> None:
    rates = [warmup_cosine(step, 100, 0.1) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[-1] == pytest.approx(0.5 * (1 + math.cos(math.pi * 89 / 90)))
    assert all(after < before for before, after in pairwise(rates[10:]))


def test_progress_of_an_extended_run_starts_again() -> None:
    assert Clock(step=0, steps=10).progress == 0
    assert Clock(step=9, steps=10).progress == 1
    assert Clock(step=10, steps=20, schedule_start=10).progress == 0


def test_stages_are_seeded_apart_and_repeat() -> None:
    values = {}
    for key in ((0, "transform", 1, 0), (0, "predict", 1, 0), (0, "predict", 1, 1), (1, "predict", 1, 1), (0, "predict", 2, 0)):
        seed_stage(*key)
        values[key] = torch.rand(1).item()
    assert len(set(values.values())) == len(values)
    for key, value in values.items():
        seed_stage(*key)
        assert torch.rand(1).item() == value


def test_automatic_choices_on_a_cpu() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    machine = choose_machine("auto")
    assert (machine.autocast_dtype, machine.compile) == (None, False)
    assert set(machine.reasons) == {"device", "precision", "compile"}
    assert choose_machine("cpu", "bf16").autocast_dtype is torch.bfloat16
    with pytest.raises(SslkitError, match="fp16 needs CUDA"):
        choose_machine("cpu", "fp16")
    with pytest.raises(SslkitError, match="cuda:7 is not available"):
        choose_machine("cuda:7")


@pytest.mark.parametrize("has_amx", [True, False])
def test_a_cpu_that_is_faster_in_bf16_says_so(has_amx: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bf16_matrices", lambda: has_amx)
    machine = choose_machine("cpu")
    assert machine.precision == "fp32"
    assert ("--precision bf16 trains faster" if has_amx else "not faster") in machine.reasons["precision"]


@pytest.mark.parametrize("kind", ["rotation", "simclr"])
def test_predict_is_one_graph(kind: str) -> None:
    task = task_of(kind).float()
    views = torch.rand(4, {"rotation": 4, "simclr": 2}[kind], 3, 16, 16)
    compiled = torch.compile(task.predict, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled({"image": views}), task.predict({"image": views}), atol=1e-5)


def test_views_differ_from_samples() -> None:
    task = task_of("simclr", norm="layer")
    image = torch.rand(3, 2, 3, 16, 16).double()
    both = task.each_view(task.encoder, image)
    assert both.shape == (3, 2, 16)
    assert torch.allclose(both[:, 1], task.each_view(task.encoder, image[:, 1]))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_on_cuda(precision: str) -> None:
    machine = choose_machine("cuda", precision)
    task = task_of("rotation").float().cuda()
    scaler = machine.scaler()
    optimizer = build_optimizer(task, spec(lr=0.01), 1)
    image = torch.rand(8, 4, 3, 16, 16, device="cuda")
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        micro_batches = MicroBatches(task, Predict(task, machine), machine, {"image": image}, 4, 0, step)
        report = compute_gradients(micro_batches, scaler.scale)
        scaler.step(optimizer)
        scaler.update()
        losses.append(float(report.terms["loss"]))
    assert losses[-1] < losses[0]


def test_widened_outputs_under_bf16() -> None:
    task = task_of("simclr").float()
    machine = choose_machine("cpu", "bf16")
    batch = {"image": torch.rand(4, 2, 3, 16, 16)}
    output = MicroBatches(task, task.predict, machine, batch, 4, 0, 0).output(0)
    assert output.dtype == torch.float32
    exact = task.predict(batch)
    assert not torch.equal(output, exact)
    assert torch.allclose(F.normalize(output, dim=-1), F.normalize(exact, dim=-1), atol=0.1)


def test_betas_of_a_group_are_those_of_adamw() -> None:
    class Special(Ragged):
        def param_groups(self) -> list[dict[str, Any]]:
            return [{"params": list(self.head.parameters()), "betas": [0.5, 0.9]}]

    task = task_of(Special)
    head = {id(parameter) for parameter in task.head.parameters()}
    for group in build_optimizer(task, spec(), 1).param_groups:
        assert group["betas"] == ((0.5, 0.9) if id(group["params"][0]) in head else (0.9, 0.999))
    for name in ("sgd", "lars"):
        with pytest.raises(SslkitError, match=f"--optimizer: {name} has no betas"):
            build_optimizer(task, spec(optimizer=name), 1)
