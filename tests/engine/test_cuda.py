"""What only a GPU can show. Skipped, visibly, where there is none."""

import copy
import math
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor

from sslkit import DataInfo, load, registry
from sslkit.contract.source import ReadSeed
from sslkit.contract.task import Clock, PretextTask, rows
from sslkit.data.loader import Loader
from sslkit.encoders.build import build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.engine.compilation import Predict
from sslkit.engine.job import build_task
from sslkit.engine.micro_batches import MicroBatches, compute_gradients
from sslkit.engine.parallel import World
from sslkit.engine.precision import Machine, choose_machine
from sslkit.engine.pretrain import prepare, pretrain
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import Stepper
from sslkit.image.transforms import CropBox, crop, random_box
from sslkit.image.transforms.blur import blur
from sslkit.nn.sync_batchnorm import convert_sync_batchnorm
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import load_task
from sslkit.testing.bench import Bench
from sslkit.testing.synchronization import stages
from tests.canvases import canvases

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def task_of(name: str, encoder: str = "vit_micro", **options: Any) -> PretextTask:
    seed_stage(0, "build", 0)
    task_class = load_task(name)
    built = build_encoder(recipe_for(encoder, 32))
    return task_class(task_class.Options(**options), built, DataInfo(8, 32)).cuda().train()


def gradient(task: PretextTask, batch: Any, machine: Machine, micro_batch: int) -> Tensor:
    """Return all gradients in one vector, through the loss scaler where there is one."""
    task = copy.deepcopy(task)
    scaler = machine.scaler()
    predict = Predict(task, machine)
    with predict.in_step():
        compute_gradients(MicroBatches(task, predict, machine, batch, micro_batch, 0, 0), scaler.scale)
    machine.world.average(parameter.grad for parameter in task.parameters() if parameter.grad is not None)
    gradients = torch.cat([parameter.grad.flatten() for parameter in task.parameters() if parameter.grad is not None])
    return gradients / scaler.get_scale()


def batch_of(task: PretextTask) -> Any:
    seed_stage(0, "transform", 0)
    image = torch.rand(8, 3, 36, 36, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    return task.transform(canvases(image, index=torch.arange(8, device="cuda")))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize(
    ("name", "options"), [("rotation", {}), ("simclr", {"norm": "layer"}), ("moco", {"norm": "layer"}), ("mae", {})]
)
def test_micro_batches_in_half_precision(name: str, options: dict[str, Any], precision: str) -> None:
    task = task_of(name, **options)
    machine = choose_machine("cuda", precision, compile="off")
    batch = batch_of(task)
    whole = gradient(task, batch, machine, 8)
    for micro_batch in (2, 3):
        difference = gradient(task, batch, machine, micro_batch) - whole
        assert float(difference.norm() / whole.norm()) < {"bf16": 3e-2, "fp16": 4e-3}[precision]


@pytest.mark.parametrize(
    "name", [e.name for e in registry.entries(registry.TASKS) if e.package == "sslkit" and e.modality == "image"]
)
def test_a_run_with_the_defaults_of_a_gpu(name: str, digits: Path, tmp_path: Path) -> None:
    options = load_task(name).example_options(tmp_path)
    spec = PretrainSpec(
        task=name, data=str(digits), out=str(tmp_path / name), steps=6, batch_size=16, micro_batch=6, options=options
    )
    result = pretrain(spec)
    assert result.steps == 6
    assert torch.isfinite(load(result.checkpoint)(torch.rand(2, 3, 32, 32))).all()


@pytest.mark.parametrize("name", [e.name for e in registry.entries(registry.TASKS) if e.package == "sslkit"])
def test_no_stage_of_a_step_waits_for_the_device(name: str) -> None:
    with Bench(load_task(name)) as bench:
        stepper = bench.stepper()
        source, task = stepper.settings.source, stepper.task.cuda()
        raw = {key: value.cuda() if isinstance(value, Tensor) else value for key, value in bench.raw(stepper).items()}
        for _ in stages(task, source, raw):  # loads kernels, and copies constants once
            pass
        torch.cuda.synchronize()
        entered = ""
        try:
            torch.cuda.set_sync_debug_mode("error")
            for stage in stages(task, source, raw):
                entered = stage
        except RuntimeError as error:
            pytest.fail(f"{entered}: {error}")
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_crops_and_blurs_are_those_of_a_cpu() -> None:
    canvas, ones = torch.rand(16, 3, 40, 40), torch.ones(16)
    box = random_box(canvas, aspect=ones, flipped=0.5)
    on_device = CropBox(*(None if value is None else value.cuda() for value in vars(box).values()))
    for size in (16, 32, 64):
        cropped = crop(canvas, box, size)
        assert torch.allclose(crop(canvas.cuda(), on_device, size).cpu(), cropped, atol=1e-4)
    sigma = 0.1 + 1.9 * torch.rand(16)
    assert torch.allclose(blur(canvas.cuda(), sigma.cuda(), 6).cpu(), blur(canvas, sigma, 6), atol=1e-5)


def with_half(rank: int, port: int, folder: str, compile: bool) -> None:
    """Be one of two processes on one GPU (NCCL wants one each, gloo does not mind)."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    world = World(rank, 2, 0)
    task = task_of("simclr", "resnet_micro").double()
    batch = {name: value.double() for name, value in batch_of(task).items()}
    convert_sync_batchnorm(task)
    machine = Machine(torch.device("cuda"), None, compile=compile, sync_batchnorm=True, world=world)
    torch.save(gradient(task, rows(batch, 4 * rank, 4 * rank + 4), machine, 4), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("compile", [False, True])
def test_batchnorm_over_processes_sees_the_whole_batch(tmp_path: Path, compile: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(with_half, args=(port, str(tmp_path), compile), nprocs=2)
    halves = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert torch.equal(*halves)
    task = task_of("simclr", "resnet_micro").double()
    batch = {name: value.double() for name, value in batch_of(task).items()}
    whole = gradient(task, batch, choose_machine("cuda", "fp32", compile="off"), 8)
    assert float((halves[0] - whole).norm() / whole.norm()) < 1e-8


def test_batches_are_prefetched_in_order() -> None:
    from sslkit.data.prefetch import prefetch

    def batches() -> Any:
        for number in range(5):
            yield {"image": torch.full((64, 3, 64, 64), number, dtype=torch.uint8).pin_memory(), "broken": [number]}
        raise RuntimeError("the loader ended")

    delivered = []
    with pytest.raises(RuntimeError, match="the loader ended"):
        for raw in prefetch(batches(), torch.device("cuda")):
            assert raw["image"].is_cuda
            torch.cuda._sleep(10_000_000)  # the step, which runs asynchronously
            delivered.append((raw["image"].float().mean().item(), raw["broken"]))
    assert delivered == [(float(number), [number]) for number in range(5)]


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "lars"])
def test_no_step_waits_for_its_numbers(optimizer: str, digits: Path, tmp_path: Path) -> None:
    """From the transformed batch to the end of the step nothing synchronizes host and device."""
    spec = PretrainSpec(
        task="byol", data=str(digits), out=str(tmp_path), steps=4, batch_size=16, optimizer=optimizer, clip=1.0, compile="off"
    )
    job = prepare(spec)
    stepper = Stepper(build_task(job, initialize=True), job.settings, Clock(steps=4))
    raw = next(Loader(job.settings.source, 0, substitute=True)([np.arange(16)], ReadSeed(0, 0)))
    for _ in range(4):
        batch = stepper.transformed(raw)
        stepper.settle()
        torch.cuda.set_sync_debug_mode("error" if stepper.clock.step else "default")
        try:
            stepper.learn(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(stepper.settle()["loss"])


def test_optimizers_are_fused() -> None:
    from sslkit.engine.optimizer import build_optimizer

    task = task_of("rotation")
    for name in ("sgd", "adamw"):
        optimizer = build_optimizer(task, PretrainSpec(task="rotation", optimizer=name), 10)
        assert optimizer.defaults["fused"]


def test_features_are_those_of_the_cpu_within_half_precision(digits: Path) -> None:
    from sslkit.engine.features import extract
    from sslkit.image.source import ImageSource
    from sslkit.specs.data import DataSpec

    encoder, spec = build_encoder(recipe_for("resnet_micro", 16)), DataSpec(workers=0)
    samples = ImageSource.for_evaluation(ImageSource.read_index(str(digits / "train"), spec), spec, encoder, 16)
    on_cpu = extract(encoder, samples, choose_machine("cpu"), 20, hashed=True)
    on_gpu = extract(encoder.cuda(), samples, choose_machine("cuda"), 20, hashed=True)
    assert not on_gpu.layers["last"].is_cuda and np.array_equal(on_gpu.hashes, on_cpu.hashes)
    torch.testing.assert_close(on_gpu.layers["last"], on_cpu.layers["last"], rtol=0.05, atol=0.05)
    single = extract(encoder, samples, choose_machine("cuda", "fp32"), 20)
    torch.testing.assert_close(single.layers["last"], on_cpu.layers["last"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("resident", [True, False])
def test_evaluations_on_the_gpu_are_those_on_the_cpu(resident: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from sslkit.evaluation import solvers
    from sslkit.evaluation.knn import count_votes, unit_features
    from sslkit.evaluation.retrieval import Bank, rank
    from sslkit.evaluation.solvers import Standardized, cross_entropy, fit_linear

    monkeypatch.setattr(solvers, "_RESIDENT", 0.6 if resident else 0.0)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.randn(500, 16, generator=generator), torch.arange(500) % 5
    features = features + torch.randn(5, 16, generator=generator)[labels]
    fits, votes, ranks = [], [], []
    for device in (torch.device("cpu"), torch.device("cuda")):
        fits.append(fit_linear(Standardized.of(features, device), labels.to(device), 5, 0.1, cross_entropy).cpu())
        bank = unit_features(features, device)
        votes.append(count_votes(bank, labels.to(device), features[:50], 20, 0.07, 5))
        ranks.append(rank(Bank(features, labels, device), features[:50], labels[:50]))
    torch.testing.assert_close(fits[1], fits[0], rtol=0, atol=2e-3)
    torch.testing.assert_close(votes[1], votes[0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ranks[1], ranks[0], rtol=0, atol=1e-6)
