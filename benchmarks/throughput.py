"""Images per second of `sslkit pretrain` against a loop that trains the same network, loss and optimizer on one tensor.

Both run in this process in turns of a few steps, so that a noisy machine is noisy for both. The engine's turns include
everything a user pays for: loading, augmentation, logging's one look at the loss, schedules, clipping's norm.

    python benchmarks/throughput.py simclr --data LIST_OR_FOLDER
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch

from sslkit.contract.task import Clock
from sslkit.data.loader import Loader, epoch_batches
from sslkit.encoders.builder import RecipeBuilder
from sslkit.engine.micro_batches import named_terms, total_loss
from sslkit.engine.pretrain import prepare
from sslkit.engine.seeds import seed_stage
from sslkit.engine.stepper import Stepper, to_device
from sslkit.specs.train import PretrainSpec


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--steps", type=int, default=4, help="steps in a turn")
    arguments = parser.parse_args()
    spec = PretrainSpec(
        task=arguments.task, data=arguments.data, batch_size=arguments.batch_size, encoder=arguments.encoder, steps=10**6
    )
    engine = engine_steps(spec)
    fixed = fixed_tensor_steps(spec)
    for steps in (engine, fixed):
        turn(steps, 3)
    ratios, rates = [], []
    for _ in range(arguments.turns):
        ours, bare = turn(engine, arguments.steps), turn(fixed, arguments.steps)
        ratios.append(bare / ours)
        rates.append((arguments.batch_size / ours, arguments.batch_size / bare))
    print(
        json.dumps(
            {
                "task": arguments.task,
                "engine_images_per_second": round(statistics.median(ours for ours, _ in rates), 1),
                "fixed_tensor_images_per_second": round(statistics.median(bare for _, bare in rates), 1),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
            }
        )
    )


def engine_steps(spec: PretrainSpec) -> Iterator[Any]:
    stepper = new_stepper(spec)
    loader = Loader(stepper.settings.source, stepper.settings.workers, substitute=True)
    for epoch in count():
        for raw in loader(epoch_batches(stepper.settings.data.samples, spec.batch_size, spec.seed, epoch)):
            yield stepper.step(raw)


def fixed_tensor_steps(spec: PretrainSpec) -> Iterator[Any]:
    stepper = new_stepper(spec)
    task, optimizer = stepper.task, stepper.optimizer
    loader = Loader(stepper.settings.source, 0, substitute=True)
    raw = next(loader(epoch_batches(stepper.settings.data.samples, spec.batch_size, spec.seed, 0)))
    with torch.no_grad():
        batch = task.transform(to_device(raw, stepper.settings.source, stepper.machine.device))
    while True:
        optimizer.zero_grad(set_to_none=True)
        loss = total_loss(named_terms(task.loss(task.predict(batch), batch)))
        loss.backward()
        yield optimizer.step()


def new_stepper(spec: PretrainSpec) -> Stepper:
    training = prepare(spec)
    seed_stage(spec.seed, "build", 0)
    encoder = training.build_encoder(RecipeBuilder(training.settings.recipe, training.settings.data))
    return Stepper(training.build_task(encoder, training.settings.data), training.settings, Clock(steps=10**6))


def turn(steps: Iterator[Any], number: int) -> float:
    """Return the seconds per step of a number of steps."""
    began = time.perf_counter()
    for _ in range(number):
        next(steps)
    return (time.perf_counter() - began) / number


if __name__ == "__main__":
    main()
