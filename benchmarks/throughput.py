"""Images per second of `sslkit pretrain` against a loop that trains the same network, loss and optimizer on one tensor.

Both run in this process in turns of a few steps, so that a noisy machine is noisy for both. The engine's turns include
everything a user pays for: loading, augmentation, logging's one look at the loss, schedules, clipping's norm. Both train one
network, compiled once.

    python benchmarks/throughput.py simclr --data LIST_OR_FOLDER
"""

import argparse
import json
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch

from sslkit.contract.source import ReadSeed
from sslkit.contract.task import Clock, rows
from sslkit.data.loader import Loader, epoch_batches
from sslkit.data.prefetch import prefetch
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.micro_batches import named_terms, total_loss, widen
from sslkit.engine.pretrain import prepare
from sslkit.engine.profile import unmeasured
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import Stepper
from sslkit.specs.train import PretrainSpec

STEPS = 10**6  # of a run that nobody finishes: its learning rate hardly leaves zero, and so the weights stay as they are


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn")
    arguments = parser.parse_args()
    spec = PretrainSpec(
        task=arguments.task,
        data=arguments.data,
        batch_size=arguments.batch_size,
        encoder=arguments.encoder,
        precision=arguments.precision,
        steps=STEPS,
    )
    stepper = new_stepper(spec)
    engine, fixed = engine_steps(stepper), fixed_tensor_steps(stepper)
    for steps in (engine, fixed):
        turn(steps, 3)
    print(json.dumps({"task": arguments.task, **alternate(spec.batch_size, engine, fixed, arguments.turns, arguments.steps)}))


def alternate(
    batch_size: int, engine: Iterator[Any], fixed: Iterator[Any], turns: int, steps: int
) -> dict[str, float | list[float]]:
    """Take turns of a number of steps; return the medians of images per second, and of the ratios of the pairs of turns."""
    pairs = [(turn(engine, steps), turn(fixed, steps)) for _ in range(turns)]
    ratios = sorted(round(bare / ours, 3) for ours, bare in pairs)
    return {
        "engine_images_per_second": round(batch_size / statistics.median(ours for ours, _ in pairs), 1),
        "fixed_tensor_images_per_second": round(batch_size / statistics.median(bare for _, bare in pairs), 1),
        "ratio": round(statistics.median(ratios), 3),
        "ratios": ratios,
    }


def new_stepper(spec: PretrainSpec) -> Stepper:
    training = prepare(spec)
    seed_stage(spec.seed, "build", 0)
    encoder = training.build_encoder(RecipeBuilder(training.settings.recipe, training.settings.data))
    return Stepper(training.build_task(encoder, training.settings.data), training.settings, Clock(steps=STEPS))


def engine_steps(stepper: Stepper, batch_size: int | None = None) -> Iterator[Any]:
    """Read, copy ahead, transform and learn, as a run does, without its pause between two epochs."""
    settings, device = stepper.settings, stepper.machine.device
    samples, seed = settings.data.samples, settings.spec.seed
    size = batch_size or settings.spec.batch_size
    loader = Loader(settings.source, settings.workers, substitute=True, pin_memory=device.type == "cuda")
    epochs = range(1 + 1000 * size // samples)
    while True:
        batches = [batch for epoch in epochs for batch in epoch_batches(samples, size, seed, epoch)]
        for raw in prefetch(loader(batches, ReadSeed(seed, 0)), device):
            yield stepper.step(raw)


def fixed_tensor_steps(stepper: Stepper) -> Iterator[Any]:
    """Train on one transformed batch: the network, the loss and the optimizer, and nothing else."""
    settings, task, optimizer = stepper.settings, stepper.task, stepper.optimizer
    size = settings.spec.batch_size
    loader = Loader(settings.source, 0, substitute=True)
    raw = next(loader(epoch_batches(settings.data.samples, size, settings.spec.seed, 0)))
    batch = rows(stepper.transformed(raw), 0, size)
    while True:
        optimizer.zero_grad(set_to_none=True)
        with stepper.machine.autocast():
            output = widen(stepper.predict(batch))
        counts = task.counts(batch)
        terms = named_terms(task.loss(output, batch))
        total_loss({name: term / counts.get(name, 1) for name, term in terms.items()}).backward()
        yield optimizer.step()


def turn(steps: Iterator[Any], number: int) -> float:
    """Return the seconds per step of a number of steps, the device's work included."""
    synchronize()
    began = time.perf_counter()
    for _ in range(number):
        next(steps)
    synchronize()
    return (time.perf_counter() - began) / number


def stage_shares(stepper: Stepper, steps: Iterator[Any], number: int) -> dict[str, float]:
    """Return the share of each stage in a number of the engine's steps; reading is part of the last stage."""
    stages = Stages(stepper.machine.device)
    stepper.enter = stages.enter
    turn(steps, number)
    stepper.enter = unmeasured
    return stages.shares()


class Stages:
    """Note when each stage begins: on CUDA by events in the stream, so that nothing waits for the device."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        if self.cuda:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        else:
            moment = time.perf_counter()
        self.marks.append((stage, moment))

    def shares(self) -> dict[str, float]:
        """Return the share of each stage in the time from the first mark to the last."""
        synchronize()
        times: dict[str, float] = defaultdict(float)
        for (stage, begin), (_, end) in zip(self.marks, self.marks[1:], strict=False):
            times[stage] += begin.elapsed_time(end) if self.cuda else end - begin
        total = sum(times.values())
        return {stage: round(value / total, 4) for stage, value in times.items()}


def synchronize() -> None:
    """Wait for the work of the CUDA device, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()
