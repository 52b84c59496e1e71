"""Optimizers, parameter groups and schedules."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from sslkit.contract.errors import SslkitError
from sslkit.contract.task import Clock, PretextTask
from sslkit.specs.train import TrainSpec

Group = dict[str, Any]


def build_optimizer(task: PretextTask, spec: TrainSpec, steps_per_epoch: int) -> torch.optim.Optimizer:
    """Build the optimizer of the task's parameters.

    Biases and norms (one dimension) are not decayed. The groups of `task.param_groups()` override learning rate, weight
    decay and the betas of AdamW, may keep their rate (`fixed_lr`) and may be frozen for a while; each of them, and all
    other parameters together, is clipped by its own norm. Raises SslkitError for `betas` in a group of another optimizer.
    """
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
                        "peak_lr": group.get("lr", spec.lr),
                        "peak_weight_decay": group.get("weight_decay", spec.weight_decay) if decays else 0.0,
                        "follows_weight_decay": decays and "weight_decay" not in group,
                        "frozen_steps": frozen,
                        "fixed_lr": group.get("fixed_lr", False),
                        "clipped_with": number,
                        **({"betas": tuple(group["betas"])} if "betas" in group else {}),
                    }
                )
    fused = all(parameter.is_cuda for parameter in rest) or None  # one kernel for all weights; None: torch decides
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=0.9, fused=fused)
    if spec.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=spec.lr, fused=fused)
    from timm.optim.lars import Lars  # not at the top: timm takes seconds to import

    return Lars(groups, lr=spec.lr, momentum=0.9)


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


def clip_gradients(optimizer: torch.optim.Optimizer, max_norm: float | None) -> Tensor:
    """Scale each group's gradients to at most `max_norm` and return the norm of all gradients before that."""
    norms = []
    for number in sorted({group["clipped_with"] for group in optimizer.param_groups}):
        parameters = [p for group in optimizer.param_groups if group["clipped_with"] == number for p in group["params"]]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        if not gradients:
            continue  # frozen
        norm = nn.utils.get_total_norm(gradients)
        if max_norm is not None:
            nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
        norms.append(norm)
    return torch.stack(norms).square().sum().sqrt()
