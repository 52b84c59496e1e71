"""What parts b and c of gpu.py measure: networks at 224 px, trained from canvases in memory, each in a process of its own."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from throughput import STEPS, alternate, engine_steps, fixed_tensor_steps, new_stepper, stage_shares, turn

from sslkit.contract.errors import SslkitError
from sslkit.engine.memory import peak_memory
from sslkit.engine.profile import TRANSFORM
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import PretrainSpec

SIZE, CANVAS, CANVASES = 224, 304, 4096  # 304: the side of a training canvas for 224 px
TINY_SIZE, TINY_CANVAS, TINY_CANVASES = 32, 40, 16
Report = dict[str, Any]


@dataclass(frozen=True)
class Workload:
    """A run to measure."""

    task: str
    encoder: str
    batch_size: int
    options: dict[str, Any] = field(default_factory=dict)
    micro_batch: int | None = None
    turns: int = 3


SMALL, BASE = "vit_small_patch16_224", "vit_base_patch16_224"
WORKLOADS = {
    "b": {"simclr, ViT-S/16": Workload("simclr", SMALL, 256, turns=6)},
    "c": {
        "simclr, ResNet-50": Workload("simclr", "resnet50", 256),
        "mae, ViT-S/16": Workload("mae", SMALL, 256),
        "mae, ViT-B/16": Workload("mae", BASE, 256),
        "dino 2+8, ViT-S/16": Workload("dino", SMALL, 128, {"crops": "2+8"}),
        "moco, ResNet-50": Workload("moco", "resnet50", 256),
        "simclr, ResNet-50, batch 4,096": Workload("simclr", "resnet50", 4096, micro_batch=128),
    },
}


def shrink(workload: Workload) -> Workload:
    """Return a workload that two cores do in a second."""
    encoder = "vit_micro" if workload.encoder.startswith("vit") else "resnet_micro"
    micro_batch = None if workload.micro_batch is None else 4
    return replace(workload, encoder=encoder, batch_size=8, micro_batch=micro_batch, turns=2)


def write_canvases(folder: Path, tiny: bool) -> Path:
    """Write smooth images with some noise as an array, uint8 `[N, side, side, 3]`: a canvas cache that nothing decodes."""
    side, count = (TINY_CANVAS, TINY_CANVASES) if tiny else (CANVAS, CANVASES)
    different = min(count, 64)
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(different, 3, 8, 8, generator=generator)
    noise = 0.03 * torch.randn(different, 3, side, side, generator=generator)
    images = F.interpolate(coarse, size=side, mode="bicubic") + noise
    pixels = images.clamp(0, 1).mul(255).byte().permute(0, 2, 3, 1).numpy()
    file = folder / "canvases.npy"
    array = np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(count, side, side, 3))
    for start in range(0, count, different):
        array[start : start + different] = pixels
    return file


def serve(workload: Workload, data: Path, tiny: bool, pipe: Connection) -> None:
    """Send the report of the warm-up through the pipe, wait for a word, and send the results: the body of a process."""
    steps = (memory if workload.micro_batch else speed)(workload, data, tiny)
    try:
        pipe.send(next(steps))
        pipe.recv()
        pipe.send(next(steps))
    except (SslkitError, RuntimeError) as error:  # RuntimeError: torch's, out of memory among them
        pipe.send({"error": f"{type(error).__name__}: {error}".partition("\n")[0]})


def speed(workload: Workload, data: Path, tiny: bool) -> Iterator[Report]:
    """Measure images per second, beside the same network on one tensor, the share of the transform, and peak memory.

    The first report comes when all is compiled.
    """
    began = time.perf_counter()
    stepper = _stepper(workload, data, tiny)
    engine = engine_steps(stepper)
    turn(engine, 3)
    turn(fixed_tensor_steps(stepper), 2)
    warm_up = {"warm_up_seconds": round(time.perf_counter() - began, 1)}
    _release_memory()
    yield warm_up
    peak, _ = _peak_memory(stepper, engine)
    fixed = fixed_tensor_steps(stepper)
    turn(fixed, 1)
    steps = 2 if tiny else max(4, round(1.2 / turn(engine, 2)))  # a turn of a second or more
    rates = alternate(workload.batch_size, engine, fixed, workload.turns, steps)
    shares = stage_shares(stepper, engine, steps)
    yield {
        **_description(stepper, workload),
        **warm_up,
        **rates,
        "steps_per_turn": steps,
        "transform_share": shares[TRANSFORM],
        "shares": shares,
        "peak_memory_gb": peak,
    }


def memory(workload: Workload, data: Path, tiny: bool) -> Iterator[Report]:
    """Measure the peak memory of steps on the whole batch, and on a batch of one micro-batch with the same network.

    The first report comes when all is compiled.
    """
    assert workload.micro_batch is not None
    began = time.perf_counter()
    stepper = _stepper(workload, data, tiny)
    turn(engine_steps(stepper, 2 * workload.micro_batch), 2)  # predicts without gradient, too
    warm_up = {"warm_up_seconds": round(time.perf_counter() - began, 1)}
    _release_memory()
    yield warm_up
    small, _ = _peak_memory(stepper, engine_steps(stepper, workload.micro_batch))
    _release_memory()
    large, seconds = _peak_memory(stepper, engine_steps(stepper, workload.batch_size))
    yield {
        **_description(stepper, workload),
        **warm_up,
        "engine_images_per_second": round(workload.batch_size / seconds, 1),
        "peak_memory_gb": large,
        "peak_memory_gb_of_micro_batch": small,
        "memory_ratio": round(large / small, 3),
    }


def _stepper(workload: Workload, data: Path, tiny: bool) -> Stepper:
    return new_stepper(
        PretrainSpec(
            task=workload.task,
            data=str(data),
            out=str(data.parent / "run"),
            encoder=workload.encoder,
            batch_size=workload.batch_size,
            micro_batch=workload.micro_batch or "auto",
            size=TINY_SIZE if tiny else SIZE,
            canvas=TINY_CANVAS if tiny else CANVAS,
            steps=STEPS,
            compile="auto" if tiny else "on",
            options=workload.options,
        )
    )


def _description(stepper: Stepper, workload: Workload) -> Report:
    return {
        "task": workload.task,
        "encoder": workload.encoder,
        "options": workload.options,
        "batch_size": workload.batch_size,
        "micro_batch": workload.micro_batch,
        "size": stepper.settings.data.size,
        "precision": stepper.machine.precision,
        "compiled": stepper.machine.compile,
        "workers": stepper.settings.workers,
    }


def _peak_memory(stepper: Stepper, steps: Iterator[Any]) -> tuple[float, float]:
    """Take two steps; return their peak memory in GB (on a CPU that of the process so far), and the seconds of the second."""
    if stepper.machine.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    turn(steps, 1)
    seconds = turn(steps, 1)
    return round((peak_memory(stepper.machine.device) or 0) / 1e9, 2), seconds


def _release_memory() -> None:
    """Give freed memory back to the device, which other processes warm up on."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
