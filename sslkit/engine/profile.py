"""`--profile N`: the time of each stage of N steps, and the options that would reduce it."""

import time
from collections import defaultdict
from collections.abc import Callable

import torch

from sslkit.console import say
from sslkit.engine.settings import Settings

Enter = Callable[[str], None]  # called with the stage that begins; the previous one ends


WAITING, COPY, TRANSFORM, FORWARD, LOSS = "waiting for data", "copy to the device", "transform", "forward", "loss"


BACKWARD, OPTIMIZER, HOOKS, REST = "backward", "optimizer", "hooks and metrics", "logging and health"


_STAGES = (WAITING, COPY, TRANSFORM, FORWARD, LOSS, BACKWARD, OPTIMIZER, HOOKS, REST)


def unmeasured(stage: str) -> None:
    """Ignore a stage: the default when nothing is profiled."""


class Profile:
    """Add up the seconds of each stage of the steps: every moment belongs to the stage that was entered last.

    On CUDA each change of stage waits for the device, so that its work is counted in the stage that launched it; this makes
    steps a little slower.
    """

    def __init__(self, settings: Settings, steps: int, warm_up: int) -> None:
        self.settings, self.steps, self.warm_up = settings, steps, warm_up
        self.seconds: dict[str, float] = defaultdict(float)
        self.taken = 0
        self._stage, self._since = REST, time.perf_counter()

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        if self.settings.machine.device.type == "cuda":
            torch.cuda.synchronize(self.settings.machine.device)
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def after_step(self) -> bool:
        """Count a step; return whether it was the last one to be measured."""
        self.taken += 1
        if self.taken == self.warm_up:
            self.seconds.clear()
        return self.taken == self.warm_up + self.steps

    def show(self) -> None:
        """Print the time of each stage, and advice."""
        total, steps = sum(self.seconds.values()), self.taken - self.warm_up
        if steps <= 0:
            say(f"profile: the run ended before step {self.warm_up + 1}, the first to be measured")
            return
        rate = self.settings.spec.batch_size * steps / total
        say(f"profile of {steps} steps: {1000 * total / steps:,.1f} ms each, {rate:,.0f} {self.settings.source.noun}/s", "bold")
        for stage in _STAGES:
            share = self.seconds[stage] / total
            bar = "█" * round(40 * share)
            say(f"  {stage:<20}{1000 * self.seconds[stage] / steps:>10,.1f} ms {share:>5.0%}  {bar}")
        for line in advice({stage: self.seconds[stage] / total for stage in _STAGES}, self.settings):
            say(f"  {line}")


def advice(shares: dict[str, float], settings: Settings) -> list[str]:
    """Return a line for each stage that takes too large a share of a step, naming the option to change."""
    spec, machine, lines = settings.spec, settings.machine, []
    if shares[WAITING] > 0.05:
        if not settings.reasons.get("cache", "on").startswith("on"):
            lines.append(
                "training waits for data that is decoded again in every epoch: use --cache on, with a sufficient --cache-limit"
            )
        elif settings.workers == 0:
            lines.append("training waits for data: --workers 2 or more read while the device computes")
        else:
            lines.append(
                "training waits for data: the first epoch decodes, later ones read the cache; more --workers speed up the first"
            )
    if shares[COPY] > 0.1:
        lines.append("copying is slow: a smaller --canvas copies less")
    if shares[TRANSFORM] > 0.25:
        lines.append("augmentation takes long: a smaller --canvas, or task options such as --blur 0, reduce it")
    if shares[OPTIMIZER] > 0.15:
        lines.append("the optimizer takes long: a larger --batch-size takes fewer steps")
    if shares[HOOKS] > 0.15:
        lines.append("after_step, remember and metrics of the task take long: see its options")
    if shares[REST] > 0.1:
        lines.append("logging and health checks take long: use a larger --health-every (0: never) or --checkpoint-every")
    network = shares[FORWARD] + shares[LOSS] + shares[BACKWARD]
    if spec.micro_batch != "auto" and spec.micro_batch < spec.batch_size // machine.world.size:
        lines.append(f"--micro-batch {spec.micro_batch} splits the batch: a larger one is faster if memory allows it")
    if machine.device.type == "cuda" and machine.precision == "fp32":
        lines.append("--precision auto uses half precision where the device supports it")
    if machine.device.type == "cuda" and not machine.compile:
        lines.append("--compile on fuses small operations")
    if not lines:
        lines.append(f"forward, loss and backward take {network:.0%}: only a smaller --encoder or --size would be faster")
    return lines
