"""Optimizers, parameter groups and schedules."""

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.task import Clock, PretextTask
from sslkit.engine.lars import Lars
from sslkit.engine.sharded_tensors import local_parts, split_groups, tensor_norms
from sslkit.specs.train import TrainSpec

Group = dict[str, Any]


def build_optimizer(task: PretextTask, spec: TrainSpec, steps_per_epoch: int) -> torch.optim.Optimizer:
    """Build the optimizer of the task's parameters.

    Biases and norms (one dimension) are not decayed. The groups of `task.param_groups()` override learning rate, weight
    decay and the betas of AdamW, may keep their rate (`fixed_lr`) and may be frozen for a while; each of them, and all
    other parameters together, is clipped by its own norm. Raises SslkitError for `betas` in a group of another optimizer,
    and for Nesterov momentum without momentum.
    """
    if spec.nesterov and not spec.sgd_momentum and spec.optimizer != "adamw":
        raise SslkitError("Nesterov momentum needs a momentum", "use --sgd-momentum 0.9", flag="nesterov")
    factor = lr_factor(spec)
    groups: list[Group] = []
    exceptions = [{**group, "params": list(group["params"])} for group in task.param_groups()]
    taken = {id(parameter) for group in exceptions for parameter in group["params"]}
    rest = [parameter for parameter in task.parameters() if parameter.requires_grad and id(parameter) not in taken]
    for number, group in enumerate([{"params": rest}, *exceptions]):
        if "betas" in group and spec.optimizer != "adamw":
            raise SslkitError(
                f"{spec.optimizer} has no betas, which a parameter group of the task sets", "use adamw", flag="optimizer"
            )
        frozen = group.get("frozen_epochs", 0) * steps_per_epoch + group.get("frozen_steps", 0)
        for decays in (True, False):
            members = [parameter for parameter in group["params"] if (parameter.dim() > 1) == decays]
            if members:
                groups.append(
                    {
                        "params": members,
                        "peak_lr": group.get("lr", spec.lr) * factor,
                        "peak_weight_decay": group.get("weight_decay", spec.weight_decay) if decays else 0.0,
                        "follows_weight_decay": decays and "weight_decay" not in group,
                        "frozen_steps": frozen,
                        "fixed_lr": group.get("fixed_lr", False),
                        "clipped_with": number,
                        **({"betas": tuple(group["betas"])} if "betas" in group else {}),
                    }
                )
    in_parts = any(isinstance(parameter, DTensor) for parameter in rest)
    if in_parts:
        groups = split_groups(groups)
    momentum = spec.sgd_momentum
    # One kernel for all weights, which looks at `found_inf`; other devices than these may have none, nor has SGD of parts.
    fused = (all(parameter.device.type in ("cpu", "cuda") for parameter in rest) and not in_parts) or None
    optimizer: torch.optim.Optimizer
    if spec.optimizer == "sgd":
        optimizer = torch.optim.SGD(groups, lr=spec.lr, momentum=momentum, nesterov=spec.nesterov, fused=fused)
    elif spec.optimizer == "adamw":
        first, second = map(float, spec.betas.split(","))
        optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=(first, second), fused=fused)
    else:
        optimizer = Lars(groups, lr=spec.lr, momentum=momentum, nesterov=spec.nesterov)
    reset_state(optimizer)
    return optimizer


def reset_state(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor] | None = None) -> None:
    """Drop the optimizer's state, that of some parameters or all of it.

    Momentum begins at zero, with which the first step of SGD is what it is without: torch's fused kernel leaves memory as it
    found it if the first step is skipped, and takes no mixture of weights with and without.
    """
    chosen = None if parameters is None else set(parameters)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if chosen is None or parameter in chosen:
                optimizer.state.pop(parameter, None)
                if group.get("momentum"):
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def lr_factor(spec: TrainSpec) -> float:
    """Return what `--lr-scale` multiplies learning rates by; batches of 256 are the unit (Goyal et al., 2017)."""
    batches = spec.batch_size / 256
    return {"none": 1.0, "linear": batches, "sqrt": math.sqrt(batches)}[spec.lr_scale]


def follow_schedules(optimizer: torch.optim.Optimizer, spec: TrainSpec, clock: Clock) -> float:
    """Set learning rate and weight decay of every group for this step; return the share of the peak rate."""
    share = warmup_cosine(clock.step - clock.schedule_start, clock.steps - clock.schedule_start, spec.warmup)
    end = spec.weight_decay if spec.weight_decay_end is None else spec.weight_decay_end
    decay = end + (spec.weight_decay - end) * cosine(clock.progress)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * (1.0 if group["fixed_lr"] else share)
        group["weight_decay"] = decay if group["follows_weight_decay"] else group["peak_weight_decay"]
        if clock.step < group["frozen_steps"]:
            for parameter in group["params"]:
                parameter.grad = None
    return share


def warmup_cosine(step: int, steps: int, warmup: float) -> float:
    """Return the share of the peak rate: linear from 1/n to 1 over the n warm-up steps, then a cosine to 0."""
    warmup_steps = round(warmup * steps)
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return cosine((step - warmup_steps) / max(1, steps - warmup_steps))


def cosine(progress: float) -> float:
    """Return half a cosine wave, from 1 at the start to 0 at the end."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None, by: str = "group") -> Tensor:
    """Scale gradients to norms of at most `max_norm`, and return the norm of all gradients before that.

    The norm is that of each group as `build_optimizer` made them or, `by` parameter, that of every weight, as in DINO's code.
    """
    parts: dict[int, list[Tensor]] = defaultdict(list)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parts[group["clipped_with"]].append(parameter)
    totals = []
    for parameters in parts.values():
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        each = tensor_norms(gradients)
        norm = torch.linalg.vector_norm(torch.stack(each))
        totals.append(norm)
        if max_norm is None:
            continue
        if by == "group":
            torch._foreach_mul_(local_parts(gradients), (max_norm / (norm + 1e-6)).clamp(max=1))
        else:
            torch._foreach_mul_(local_parts(gradients), [(max_norm / (size + 1e-6)).clamp(max=1) for size in each])
    total: Tensor = torch.linalg.vector_norm(torch.stack(totals))
    return total
