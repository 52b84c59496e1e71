"""Where and how the networks run: device, precision, compilation and processes, each chosen once, with the reason."""

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any

import torch

from sslkit.contract.errors import SslkitError
from sslkit.engine.parallel import ALONE, World


@dataclass(frozen=True)
class Machine:
    """Device, autocast precision, compilation and processes of a run."""

    device: torch.device
    autocast_dtype: torch.dtype | None  # None: float32 throughout
    compile: bool
    sync_batchnorm: bool = False  # statistics over the micro-batches of all processes
    shard: bool = False  # each process keeps a part of the encoders' weights
    world: World = ALONE
    reasons: dict[str, str] = field(default_factory=dict)  # by flag
    compile_required: bool = False  # by `--compile on`: a failure is an error instead of a fallback

    @property
    def precision(self) -> str:
        """Return the precision as `--precision` spells it."""
        return {None: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[self.autocast_dtype]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the autocast context of encoder and head."""
        return torch.autocast(self.device.type, dtype=self.autocast_dtype, enabled=self.autocast_dtype is not None)

    def scaler(self) -> torch.amp.GradScaler:
        """Return the loss scaler, which is enabled for fp16 only."""
        return torch.amp.GradScaler(self.device.type, enabled=self.autocast_dtype is torch.float16)


def choose_machine(
    device: str,
    precision: str = "auto",
    compile: str = "auto",
    sync_batchnorm: str = "auto",
    world: World = ALONE,
    shard: bool = False,
) -> Machine:
    """Resolve `--device`, `--precision`, `--compile`, `--sync-batchnorm` and `--shard`.

    Raises SslkitError for what this machine does not have.
    """
    chosen, why_device = choose_device(device, world)
    dtype, why_precision = _choose_precision(chosen, precision)
    sync, why_sync = _choose_sync(chosen, sync_batchnorm, world)
    on, why_compile = _choose_compile(chosen, compile)
    machine = Machine(chosen, dtype, on, sync, shard, world, compile_required=compile == "on")
    machine.reasons["device"] = f"{chosen}: {why_device}"
    machine.reasons["precision"] = f"{machine.precision}: {why_precision}"
    machine.reasons["compile"] = f"{'on' if on else 'off'}: {why_compile}"
    if world.size > 1:
        machine.reasons["processes"] = f"{world.size}: each takes an equal share of every batch; --lr is for the whole batch"
        machine.reasons["sync_batchnorm"] = f"{'on' if sync else 'off'}: {why_sync}"
    if shard:
        _check_sharding(machine)
        machine.reasons["shard"] = f"on: each process keeps 1/{world.size} of the encoder's weights"
    return machine


def choose_device(device: str, world: World = ALONE) -> tuple[torch.device, str]:
    """Return the device that `--device` names, and the reason."""
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    if world.size > 1:
        if device not in ("auto", "cpu", "cuda"):
            raise SslkitError(f"{device} cannot be shared by {world.size} processes", "use auto, cpu or cuda", flag="device")
        if device != "cpu" and cuda:
            return torch.device("cuda", world.local_rank), "one GPU each"
        if device == "auto":
            return torch.device("cpu"), "no GPU that several processes can use"
    if device == "auto":
        if cuda:
            return torch.device("cuda"), torch.cuda.get_device_name()
        return (torch.device("mps"), "Apple GPU") if mps else (torch.device("cpu"), "no GPU found")
    if device.startswith("cuda"):
        count = torch.cuda.device_count()
        if not cuda or int(device.partition(":")[2] or 0) >= count:
            raise SslkitError(f"{device} is not available (CUDA devices found: {count})", "use auto or cpu", flag="device")
    if device == "mps" and not mps:
        raise SslkitError("mps is not available", "use auto or cpu", flag="device")
    return torch.device(device), "as given"


def _choose_precision(device: torch.device, precision: str) -> tuple[torch.dtype | None, str]:
    if precision == "auto":
        if device.type == "cpu" and has_bf16_matrices():
            # Not chosen by itself: where a map is smaller than a stride, torch 2.14.1 leaves parts of the gradient undefined.
            return None, "exact; --precision bf16 trains faster on this CPU, which multiplies bf16 matrices (AMX)"
        if device.type != "cuda":
            return None, "half precision is not faster on this device"
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "the GPU computes bf16"
        return torch.float16, "the GPU has no bf16"
    if precision == "fp16" and device.type != "cuda":
        raise SslkitError(f"fp16 needs CUDA (the device is {device})", "use bf16 or fp32", flag="precision")
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision], "as given"


def has_bf16_matrices() -> bool:
    """Return whether the CPU has instructions that multiply bfloat16 matrices: Intel's AMX, since Sapphire Rapids.

    With them, steps take half to three quarters of the time (benchmarks/speed.md); without, bfloat16 is slower than float32.
    """
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.9 lacks it
    return bool(capabilities.get("amx_bf16"))


def _choose_compile(device: torch.device, compile: str) -> tuple[bool, str]:
    if compile != "auto":
        return compile == "on", "as given"
    if device.type == "cuda":
        return True, "faster on CUDA"
    return False, "compiling takes longer than it saves on this device"


def _choose_sync(device: torch.device, sync: str, world: World) -> tuple[bool, str]:
    if sync != "auto":
        return sync == "on", "as given"
    if device.type == "cuda" and world.size > 1:
        return True, "BatchNorm uses the micro-batches of all processes"
    return False, "BatchNorm uses the micro-batch of each process"


def _check_sharding(machine: Machine) -> None:
    """Raise SslkitError if `--shard` does not go with the other settings."""
    if machine.world.size == 1:
        raise SslkitError(
            "there is 1 process, and weights are divided among processes",
            "start several (see docs/scaling.md), or leave it out",
            flag="shard",
        )
    if machine.autocast_dtype is torch.float16:
        raise SslkitError("fp16 is not supported with sharded weights", "use --precision bf16", flag="shard")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Return whether torch ran out of memory, on a GPU or on the CPU (where the error has no class of its own)."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def compilation_failure(error: RuntimeError) -> str | None:
    """Return the first line of what torch.compile says it cannot compile, None for any other error."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
