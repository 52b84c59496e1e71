"""`--micro-batch auto`: as many samples at once as the memory takes, by arithmetic from small rehearsals."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.source import ReadSeed
from sslkit.contract.task import Batch, PretextTask
from sslkit.data.loader import Loader
from sslkit.engine.memory import free_memory, peak_growth
from sslkit.engine.micro_batches import BATCH_NORM, MicroBatches, compute_gradients, has_batch_norm
from sslkit.engine.precision import is_out_of_memory
from sslkit.engine.sharded_tensors import local_parts
from sslkit.engine.stepper import Stepper
from sslkit.nn.teacher import Teacher
from sslkit.specs.train import FEWEST_AT_ONCE

_ROWS = (4, 8)  # of the two rehearsals
_SPARE = 0.2  # of the free memory, for what was not rehearsed


@dataclass(frozen=True)
class StepMemory:
    """Bytes that a step takes: for each sample of a batch or micro-batch, and whatever their number."""

    transform: float  # at most, while a sample is transformed, that of the step before included if it is still there
    batch: float  # of a transformed sample
    network: float  # of a sample that passes through the networks, gradients included
    fixed: float  # gradients, what the optimizer will keep, and copies of the state

    def of(self, batch: int, micro_batch: int) -> float:
        """Return the bytes of a step with so many samples, and so many at once."""
        return self.fixed + max(batch * self.transform, batch * self.batch + micro_batch * self.network)


def settle_micro_batch(stepper: Stepper) -> str | None:
    """Replace `--micro-batch auto` by what fits, and return the reason; None if it is a number already."""
    if stepper.spec.micro_batch != "auto":
        return None
    size, reason = choose_micro_batch(stepper)
    stepper.update_spec(micro_batch=size)
    return reason


def choose_micro_batch(stepper: Stepper) -> tuple[int, str]:
    """Return the number of samples at once that fits the free memory, and the reason.

    It is the whole batch or the largest power of two that leaves a fifth of the memory free; several processes agree on the
    smallest. Raises SslkitError if too few fit.
    """
    share, device = stepper.spec.batch_size // stepper.world.size, stepper.machine.device
    free = free_memory(device)
    memory = measure_memory(stepper) if free is not None and share > max(_ROWS) else None
    if free is None or memory is None:
        return share, "the whole batch"
    limit = (1 - _SPARE) * free
    fewest = min(share, FEWEST_AT_ONCE if has_batch_norm(stepper.task) else 1)
    halves = [share, *(2**power for power in range(int(math.log2(share)), -1, -1) if fewest <= 2**power < share)]
    fitting = next((size for size in halves if memory.of(share, size) <= limit), 0)
    fitting = min(stepper.world.gather_lists([fitting]))
    whole = f"the whole batch takes about {_size(memory.of(share, share))} of {_size(free)} free"
    if fitting == 0:
        raise SslkitError(
            f"a step takes about {_size(memory.of(share, halves[-1]))} with {halves[-1]} samples at once, and "
            f"{_size(free)} are free",
            _advice(memory, stepper, limit),
            flag="micro_batch",
        )
    return fitting, whole if fitting == share else f"{whole}, this {_size(memory.of(share, fitting))}"


def measure_memory(stepper: Stepper) -> StepMemory | None:
    """Return the memory of a step, measured on a few samples; nothing in the task's state changes.

    None where the system does not report memory. Raises SslkitError if not even a few samples fit.
    """
    try:
        return _measure_memory(stepper)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        reason = f"not even {max(_ROWS)} samples fit the memory of {stepper.machine.device}"
        raise SslkitError(reason, "use a smaller --size or --encoder", flag="micro_batch") from error


def _measure_memory(stepper: Stepper) -> StepMemory | None:
    task, machine, (few, more) = stepper.task, stepper.machine, _ROWS
    loader = Loader(stepper.settings.source, workers=0, substitute=True)
    transforms, networks, batches = [], [], list[Batch]()
    stepper.snapshot.take()
    compiled, stepper.predict.compiled = stepper.predict.compiled, None
    fusion, stepper.fusion = stepper.fusion, None  # sizes that never come again need not be compiled
    for rows in (2, few, more):  # the first for what is allocated only once
        raw = next(loader([np.arange(rows)], ReadSeed(stepper.spec.seed, 0)))
        transforms.append(peak_growth(machine.device, lambda raw=raw: batches.append(stepper.transformed(raw))))  # type: ignore[misc]
        micro_batches = MicroBatches(task, stepper.predict, machine, batches[-1], rows, stepper.spec.seed, 0)
        networks.append(peak_growth(machine.device, lambda micro=micro_batches: compute_gradients(micro, _unscaled)))  # type: ignore[misc]
        task.zero_grad(set_to_none=True)
    stepper.predict.compiled, stepper.fusion = compiled, fusion
    stepper.snapshot.restore()
    if transforms[1] is None or transforms[2] is None or networks[1] is None or networks[2] is None:
        return None
    weights = sum(part.nbytes for part in local_parts(p for p in task.parameters() if p.requires_grad))
    batch = _bytes(batches[-1]) / more
    copies = stepper.buckets is not None  # of gradients, in the first step
    moments = {"adamw": 2, "sgd": 0, "lars": 0}[stepper.spec.optimizer]  # momentum was allocated with the optimizer
    return StepMemory(
        transform=max(0.0, (transforms[2] - transforms[1]) / (more - few)) + (batch if stepper.reads_late else 0.0),
        batch=batch,
        network=max(0.0, (networks[2] - networks[1]) / (more - few)),
        fixed=(1 + moments + copies) * weights + stepper.snapshot.bytes,
    )


def _unscaled(loss: Tensor) -> Tensor:
    return loss


def _bytes(batch: Batch) -> int:
    return sum(value.numel() * value.element_size() for value in batch.values() if isinstance(value, torch.Tensor))


def _advice(memory: StepMemory, stepper: Stepper, limit: float) -> str:
    """Return what would make a step fit."""
    share, task = stepper.spec.batch_size // stepper.world.size, stepper.task
    ways = ["a smaller --size"]
    if (limit - memory.fixed) / max(memory.transform, memory.batch, 1) < share:
        ways.append("a smaller --batch-size")
    elif has_batch_norm(task):
        ways.append("a smaller --batch-size")
        flags = _flags_against_batch_norm(task)
        if flags:
            ways.append(f"{flags}, so that fewer samples may be computed at once")
    return f"use {', '.join(ways[:-1])} or {ways[-1]}" if len(ways) > 1 else f"use {ways[0]}"


def _flags_against_batch_norm(task: PretextTask) -> str:
    """Return the flags that leave a task without BatchNorm, none if its heads cannot be without."""
    teachers = [module for module in task.modules() if isinstance(module, Teacher)]  # whose networks are copies
    copied = {module for network in (task.encoder, *teachers) for module in network.modules()}
    in_encoder = ["--encoder-option norm=group"] if has_batch_norm(task.encoder) else []
    if all(module in copied for module in task.modules() if isinstance(module, BATCH_NORM)):
        return in_encoder[0]
    return " and ".join([*in_encoder, "--norm layer"]) if "norm" in type(task.options).model_fields else ""


def _size(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.0f} MB"
