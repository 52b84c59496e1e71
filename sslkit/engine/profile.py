"""`--profile N`: where the time of N steps goes, and which option would change that."""

import time
from collections import defaultdict
from collections.abc import Callable

import torch

from sslkit.console import say
from sslkit.engine.settings import Settings

Enter = Callable[[str], None]  # told which stage begins; the one before ends


WAITING, COPY, TRANSFORM, FORWARD, LOSS = "waiting for data", "copy to the device", "transform", "forward", "loss"


BACKWARD, OPTIMIZER, HOOKS, REST = "backward", "optimizer", "hooks and metrics", "logging and health"


_STAGES = (WAITING, COPY, TRANSFORM, FORWARD, LOSS, BACKWARD, OPTIMIZER, HOOKS, REST)


def unmeasured(stage: str) -> None:
    """Measure nothing."""


class Profile:
    """Add up the seconds of each stage of the steps: every moment belongs to the stage that was entered last.

    On CUDA each change of stage waits for the device, so that its work is counted where it was asked for; steps are a little
    slower for it.
    """

    def __init__(self, plan: Settings, steps: int, warm_up: int) -> None:
        self.plan, self.steps, self.warm_up = plan, steps, warm_up
        self.seconds: dict[str, float] = defaultdict(float)
        self.taken = 0
        self._stage, self._since = REST, time.perf_counter()

    def enter(self, stage: str) -> None:
        """Begin a stage."""
        if self.plan.machine.device.type == "cuda":
            torch.cuda.synchronize(self.plan.machine.device)
        now = time.perf_counter()
        self.seconds[self._stage] += now - self._since
        self._stage, self._since = stage, now

    def after_step(self) -> bool:
        """Count a step; returns whether it was the last that is measured."""
        self.taken += 1
        if self.taken == self.warm_up:
            self.seconds.clear()
        return self.taken == self.warm_up + self.steps

    def show(self) -> None:
        """Print the table and what may be done."""
        total, steps = sum(self.seconds.values()), self.taken - self.warm_up
        if steps <= 0:
            say(f"profile: the run ended before {self.warm_up + 1} steps, the first that would be measured")
            return
        rate = self.plan.spec.batch_size * steps / total
        say(f"profile of {steps} steps: {1000 * total / steps:,.1f} ms each, {rate:,.0f} {self.plan.source.noun}/s", "bold")
        for stage in _STAGES:
            share = self.seconds[stage] / total
            bar = "█" * round(40 * share)
            say(f"  {stage:<20}{1000 * self.seconds[stage] / steps:>10,.1f} ms {share:>5.0%}  {bar}")
        for line in advice({stage: self.seconds[stage] / total for stage in _STAGES}, self.plan):
            say(f"  {line}")


def advice(shares: dict[str, float], plan: Settings) -> list[str]:
    """Return a line for each stage that takes more of a step than it should, naming the option to change."""
    spec, machine, lines = plan.spec, plan.machine, []
    if shares[WAITING] > 0.05:
        if not plan.reasons.get("cache", "on").startswith("on"):
            lines.append(
                "it waits for data, which is decoded anew in every epoch: --cache on, with a --cache-limit that has room"
            )
        elif plan.workers == 0:
            lines.append("it waits for data: --workers 2 or more read while the device computes")
        else:
            lines.append("it waits for data: the first epoch decodes, later ones read the cache; until then, more --workers")
    if shares[COPY] > 0.1:
        lines.append("copying is slow: a smaller --canvas is less to copy")
    if shares[TRANSFORM] > 0.25:
        lines.append(
            "augmentation is a large part: a smaller --canvas, or options of the task such as --blur 0, make it cheaper"
        )
    if shares[OPTIMIZER] > 0.15:
        lines.append("the optimizer is a large part: a larger --batch-size moves the weights less often")
    if shares[HOOKS] > 0.15:
        lines.append("the task's own after_step, remember and metrics are a large part: see its options")
    if shares[REST] > 0.1:
        lines.append("looking after the run is a large part: a larger --health-every, --health-every 0, or --checkpoint-every")
    network = shares[FORWARD] + shares[LOSS] + shares[BACKWARD]
    if spec.micro_batch is not None and spec.micro_batch < spec.batch_size // machine.world.size:
        lines.append(f"--micro-batch {spec.micro_batch} cuts the batch: a larger one is faster, if the memory allows it")
    if machine.device.type == "cuda" and machine.precision == "fp32":
        lines.append("--precision auto computes in half precision, where the device has it")
    if machine.device.type == "cuda" and not machine.compile:
        lines.append("--compile on fuses small operations")
    if not lines:
        said = f"forward, loss and backward are {network:.0%}: nothing else is in the way"
        lines.append(f"{said}; a smaller --encoder or --size is what would be faster")
    return lines
