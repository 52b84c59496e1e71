"""Two processes with gloo between them, for tests of what they exchange."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from sslkit.engine.parallel import World


def run_in_two(function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Return `function(world, *arguments)` of two processes; tensors, and plain values around them."""
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(_run, args=(folder, function, arguments), nprocs=2)
        return [torch.load(Path(folder, str(rank)), weights_only=True) for rank in range(2)]


def _run(rank: int, folder: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    torch.save(function(World(rank, 2, rank), *arguments), Path(folder, str(rank)))
    dist.destroy_process_group()
