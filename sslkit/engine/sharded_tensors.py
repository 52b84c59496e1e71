"""Tensors of which each process has a part, beside whole ones: their values, norms, and the state of their optimizer."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def local_parts(tensors: Iterable[Tensor]) -> list[Tensor]:
    """Return this process's parts of tensors; they share memory with those. Others are returned as they are."""
    return [tensor.to_local() if isinstance(tensor, DTensor) else tensor for tensor in tensors]


def full_values(value: Any) -> Any:
    """Return nested dicts and lists with whole tensors in place of parts; all processes have to call this."""
    if isinstance(value, DTensor):
        return value.full_tensor()
    if isinstance(value, dict):
        return {name: full_values(inner) for name, inner in value.items()}
    return [full_values(inner) for inner in value] if isinstance(value, list) else value


def distribute_like(value: Tensor, pattern: Tensor) -> Tensor:
    """Return a whole tensor in parts if `pattern`, of the same shape, is in parts, and in its memory format if it is not."""
    if value.shape != pattern.shape:
        return value
    if isinstance(pattern, DTensor):
        return distribute_tensor(value.to(pattern.device), pattern.device_mesh, pattern.placements)
    return torch.empty_like(pattern, dtype=value.dtype, device=value.device).copy_(value)


def tensor_norms(tensors: list[Tensor]) -> list[Tensor]:
    """Return the Euclidean norm of each tensor; of one in parts, the norm of the whole."""
    each = list(torch._foreach_norm(local_parts(tensors)))
    places = [place for place, tensor in enumerate(tensors) if isinstance(tensor, DTensor)]
    if places:
        squares = torch.stack([each[place] for place in places]).square()
        dist.all_reduce(squares)
        for place, norm in zip(places, squares.sqrt().unbind(), strict=True):
            each[place] = norm
    return each


def split_groups(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return parameter groups that hold either whole tensors or parts, because optimizers take no mixture.

    `origin` keeps the number of the group that a mixed group was made from, and the places of its parameters there.
    """
    split: list[dict[str, Any]] = []
    for number, group in enumerate(groups):
        for in_parts in (False, True):
            places = [place for place, p in enumerate(group["params"]) if isinstance(p, DTensor) == in_parts]
            if places:
                parameters = [group["params"][place] for place in places]
                split.append({**group, "params": parameters, "origin": (number, places)})
    return split


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the state of an optimizer; of one with split groups, what it would be with whole tensors in the original ones."""
    state = optimizer.state_dict()
    if not _is_split(optimizer):
        return state
    numbers, groups = _numbers(optimizer), dict[int, dict[str, Any]]()
    for group in state["param_groups"]:
        settings = {name: value for name, value in group.items() if name != "origin"}
        merged = groups.setdefault(group["origin"][0], {**settings, "params": []})
        merged["params"] = sorted([*merged["params"], *(numbers[place] for place in group["params"])])
    by_number = {numbers[place]: full_values(values) for place, values in state["state"].items()}
    return {"state": dict(sorted(by_number.items())), "param_groups": list(groups.values())}


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load what `optimizer_state` returned; the kernels stay those of this machine and of whole or split groups."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers, fused = _numbers(optimizer), [group.get("fused") for group in optimizer.param_groups]
    by_place = {
        # In the memory format of the weights, which fused kernels take for that of the state.
        place: {key: distribute_like(value, parameter) if isinstance(value, Tensor) else value for key, value in values.items()}
        for place, parameter in enumerate(parameters)
        if (values := state["state"].get(numbers[place]))
    }
    groups = state["param_groups"]
    if _is_split(optimizer):
        split = optimizer.state_dict()["param_groups"]
        groups = [{**groups[group["origin"][0]], "params": group["params"], "origin": group["origin"]} for group in split]
    optimizer.load_state_dict({"state": by_place, "param_groups": groups})
    for group, value in zip(optimizer.param_groups, fused, strict=True):
        if "fused" in group:
            group["fused"] = value


def _is_split(optimizer: torch.optim.Optimizer) -> bool:
    return any("origin" in group for group in optimizer.param_groups)


def _numbers(optimizer: torch.optim.Optimizer) -> list[int]:
    """Return the number that each parameter, in the order of the split groups, has in the order of the original ones."""
    if not _is_split(optimizer):
        return list(range(sum(len(group["params"]) for group in optimizer.param_groups)))
    origins = [group["origin"] for group in optimizer.param_groups]
    sizes: dict[int, int] = {}
    for number, places in origins:
        sizes[number] = sizes.get(number, 0) + len(places)
    return [sum(sizes[before] for before in range(number)) + place for number, places in origins for place in places]
