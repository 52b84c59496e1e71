"""Operations that make the host wait for the device, noticed without one: tensors on `meta` stand for the device's.

What has no values cannot be read, as what is still being computed cannot be read without waiting for it.
"""

import copy
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sslkit.contract.source import Source
from sslkit.contract.task import PretextTask, select_needed
from sslkit.engine.micro_batches import named_terms, total_loss, widen

_READS_VALUES = {
    "_local_scalar_dense": "reads a value (.item(), float(), int(), bool(), if)",
    "is_nonzero": "reads a value (.item(), float(), int(), bool(), if)",
    "equal": "compares values (torch.equal)",
    "nonzero": "counts values (nonzero, or torch.where of one argument)",
    "masked_select": "counts values (masked_select)",
    "bincount": "reads the largest value (bincount)",
    "histc": "reads the range of values (histc)",
    "_unique": "counts values (unique)",
    "_unique2": "counts values (unique)",
    "unique_dim": "counts values (unique)",
    "unique_consecutive": "counts values (unique)",
    "unique_dim_consecutive": "counts values (unique)",
    "_linalg_check_errors": "checks for errors (torch.linalg; the functions that end in _ex do not)",
    "_linalg_eigh": "checks for errors (torch.linalg)",
    "_linalg_svd": "checks for errors (torch.linalg)",
    "linalg_eig": "checks for errors (torch.linalg)",
    "linalg_lstsq": "checks for errors (torch.linalg)",
}


_INDEX = "copies an index to the device (a list, or a tensor on the CPU, as an index)"


_COPY = "copies a tensor from the CPU to the device"


_FROM_VALUES = (torch.tensor, torch.as_tensor, torch.asarray, Tensor.new_tensor)


class SynchronizationError(Exception):
    """Name an operation that waits for the device, and the line it is on."""


def find_synchronization(task: PretextTask, source: Source, raw: dict[str, Any]) -> str | None:
    """Return which operation of a step waits for the device, on which line and in which stage; None if none does.

    `raw` is what the loader delivers. Constants may be copied to the device in the first step, if they are kept. None, too, for
    a task with an operation that has no implementation for `meta`, which cannot be checked without a device.
    """
    device = torch.device("meta")
    raw = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in raw.items()}
    task = copy.deepcopy(task).to(device)
    entered = ""
    try:
        with _autocast_on_meta():
            with ForbidSynchronization(except_copies=True) as first_step:
                for stage in stages(task, source, raw):
                    entered = stage
            if first_step.copies:
                with ForbidSynchronization():
                    for stage in stages(task, source, raw):
                        entered = stage
    except SynchronizationError as error:
        return f"{entered} {error}"
    except NotImplementedError:
        return None
    return None


def stages(task: PretextTask, source: Source, raw: dict[str, Any]) -> Iterator[str]:
    """Run what a step does between the loader and the optimizer, on the device of `raw`; yield each stage's name before it."""
    yield "prepare of the source"
    with torch.no_grad():
        prepared = select_needed(source.prepare(raw), task.needs)
    yield "transform"
    with torch.no_grad():
        batch = task.transform(prepared)
    yield "predict"
    output = widen(task.predict(batch))
    yield "loss"
    total = total_loss(named_terms(task.loss(output, batch)))
    yield "the backward pass"
    total.backward()
    yield "counts"
    with torch.no_grad():
        task.counts(batch)
    yield "metrics"
    with torch.no_grad():
        task.metrics(output, batch)
    yield "remember"
    with torch.no_grad():
        remembered = task.remember(output, batch)
    yield "after_step"
    with torch.no_grad():
        task.after_step(remembered)


@contextmanager
def _autocast_on_meta() -> Iterator[None]:
    """Let tasks switch autocast off for the device of their tensors, which torch refuses for `meta`."""
    real = torch.autocast

    def autocast(device_type: str, *arguments: Any, **settings: Any) -> Any:
        return real("cpu" if device_type == "meta" else device_type, *arguments, **settings)

    torch.autocast = autocast  # type: ignore[misc,assignment]
    try:
        yield
    finally:
        torch.autocast = real  # type: ignore[misc]


class ForbidSynchronization:
    """Raise SynchronizationError where code makes the host wait for the device, on which tensors are those on `meta`.

    Copies with `non_blocking=True` are allowed, and so is everything on tensors of the CPU among themselves; with
    `except_copies`, other copies to the device are counted in `copies` instead.
    """

    def __init__(self, except_copies: bool = False) -> None:
        self.except_copies, self.copies = except_copies, 0
        self._modes = ExitStack()

    def __enter__(self) -> Self:
        self._modes.enter_context(_Calls(self))
        self._modes.enter_context(_Operations(self))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._modes.close()

    def copy(self, problem: str) -> None:
        """Notice a copy to the device."""
        if not self.except_copies:
            raise SynchronizationError(f"{problem}{_line()}")
        self.copies += 1


class _Calls(TorchFunctionMode):
    """Notice tensors that are made of Python values on the device, which torch copies there before any operation."""

    def __init__(self, rules: ForbidSynchronization) -> None:
        super().__init__()
        self.rules = rules

    def __torch_function__(self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (Tensor.__getitem__, Tensor.__setitem__) and args[0].is_meta:
            parts = args[1] if isinstance(args[1], tuple) else (args[1],)
            if any(isinstance(part, list | np.ndarray) for part in parts):
                self.rules.copy(_INDEX)
        result = function(*args, **(kwargs or {}))
        if function in _FROM_VALUES and result.is_meta and not (args and isinstance(args[0], Tensor) and args[0] is result):
            name = getattr(function, "__name__", "tensor")
            self.rules.copy(f"copies Python values to the device ({name})")
        return result


class _Operations(TorchDispatchMode):
    """Notice operations on tensors of the device that read their values, or that copy."""

    def __init__(self, rules: ForbidSynchronization) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rules = rules

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        problem = _problem(function, args, kwargs)
        if problem == _COPY:
            self.rules.copy(problem)
        elif problem:
            raise SynchronizationError(f"{problem}{_line()}")
        return function(*args, **kwargs)


def _problem(function: Any, args: Any, kwargs: dict[str, Any]) -> str | None:
    """Return why an operation waits for the device, or None if it does not."""
    name = function.overloadpacket.__name__
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    on_device = [value for value in tensors if value.is_meta]
    if name in ("_to_copy", "copy_"):
        return _copy_problem(name, args, kwargs)
    if not on_device:
        return None
    if name in _READS_VALUES:
        return _READS_VALUES[name]
    if name == "repeat_interleave" and kwargs.get("output_size") is None:
        return "adds up repeats (repeat_interleave without output_size)"
    if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
        indices = [index for index in args[1] if index is not None]
        # A mask with one value for all of it is masked_fill, which counts nothing.
        filled = name != "index" and args[2].dim() == 0
        if not filled and any(index.dtype in (torch.bool, torch.uint8) for index in indices):
            return "counts values (a bool tensor as an index)"
        if any(not index.is_meta for index in indices):
            return _INDEX
    if any(not value.is_meta and value.dim() > 0 for value in tensors):
        return f"{name} mixes a tensor on the CPU with tensors on the device"
    return None


def _copy_problem(name: str, args: Any, kwargs: dict[str, Any]) -> str | None:
    if name == "copy_":
        target, source = args[0].is_meta, args[1].is_meta
        blocking = not (args[2] if len(args) > 2 else kwargs.get("non_blocking"))
    else:
        device = kwargs.get("device")
        source = args[0].is_meta
        target = source if device is None else torch.device(device).type == "meta"
        blocking = not kwargs.get("non_blocking")
    if source and not target:
        return "copies a tensor to the CPU"
    return _COPY if target and not source and blocking else None


def _line() -> str:
    """Return the innermost line that is neither torch's nor of this module, in parentheses."""
    torch_folder = str(Path(torch.__file__).parent)
    frames = [f for f in traceback.extract_stack() if not f.filename.startswith(torch_folder) and f.filename != __file__]
    return f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
