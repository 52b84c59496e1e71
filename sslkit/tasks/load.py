"""Load a pretext task by name, by file, several of them joined by `+`, or on data of another modality by `@`."""

import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from sslkit.contract.errors import SslkitError
from sslkit.contract.options import flat_fields
from sslkit.registry import MODALITIES, TASKS, find, load, load_modality, names
from sslkit.specs.look import PreviewSpec
from sslkit.specs.train import PretrainSpec

if TYPE_CHECKING:
    from sslkit.contract.task import PretextTask


def load_task(name: str) -> type["PretextTask"]:
    """Return the task class for an installed name or the path of a .py file.

    `a+b` is one that trains both together; `a@spectrogram` is `a` on data of a modality that stands for that of `a`.
    """
    from sslkit.contract.task import PretextTask

    task_part, _, modality = name.rpartition("@")
    if task_part and not name.endswith(".py"):
        return _on_modality(load_task(task_part), task_part, modality)
    if len(split_names(name)) > 1:
        return _load_joint(name)
    if name.endswith(".py"):
        return _task_from_file(Path(name))
    task = load(find(TASKS, name))
    if not (isinstance(task, type) and issubclass(task, PretextTask)):
        raise SslkitError(f"{name} points to {task!r}", "an entry of sslkit.tasks has to be a PretextTask class")
    return _with_own_options(task)


def task_name(task: str) -> str:
    """Return what a run of this task is called: the installed name, or the stem of the file, with a `+` between several."""
    return "+".join(Path(part).stem if part.endswith(".py") else part for part in split_names(task))


def absolute(task: str) -> str:
    """Return a task with file paths made absolute, since a run may later be read from another folder."""
    return "+".join(str(Path(part).resolve()) if part.endswith(".py") else part for part in split_names(task))


def split_names(task: str) -> list[str]:
    """Return what stands between the `+`; a file whose path has one is not cut."""
    pieces, names = task.split("+"), []
    while pieces:
        # Not a Path: it raises an error if the name is longer than the system allows.
        whole = next((end for end in range(len(pieces), 1, -1) if os.path.isfile("+".join(pieces[:end]))), 1)
        names.append("+".join(pieces[:whole]))
        pieces = pieces[whole:]
    return names


def _load_joint(name: str) -> type["PretextTask"]:
    from sslkit.tasks.joint import joint_task

    parts = split_names(name)
    called = [task_name(part) for part in parts]
    if "" in called or len(set(called)) < len(called):
        raise SslkitError(f"{name}: should be different tasks with + between them", "such as simclr+rotation")
    return joint_task({child: load_task(part) for child, part in zip(called, parts, strict=True)})


def _on_modality(task: type["PretextTask"], name: str, modality: str) -> type["PretextTask"]:
    """Return a task that reads the samples of another modality in the place of its own."""
    known = {other: load_modality(other).stands_for for other in names(MODALITIES)}
    fitting = [other for other, replaced in known.items() if replaced == task.modality]
    if modality not in fitting:
        hint = f"{name} runs on {task.modality} data" + "".join(f", and as {name}@{other}" for other in fitting)
        raise SslkitError(f"{name}@{modality}: {modality} does not stand for {task.modality} data", hint)
    described = {"modality": modality, "encodes": task.encodes, "__doc__": task.__doc__, "__module__": task.__module__}
    return type(task.__name__, (task,), described)


def _task_from_file(path: Path) -> type["PretextTask"]:
    from sslkit.contract.task import PretextTask

    if not path.is_file():
        raise SslkitError(f"task file {path} does not exist")
    spec = importlib.util.spec_from_file_location(f"sslkit_task_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # pydantic looks up annotations there
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # as in `load`
        raise SslkitError(f"task file {path} cannot be imported: {type(error).__name__}: {error}") from error
    tasks = [
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, PretextTask) and value.__module__ == module.__name__
    ]
    if len(tasks) != 1:
        names = ", ".join(task.__name__ for task in tasks) or "none"
        raise SslkitError(f"task file {path} should define one PretextTask class (found: {names})")
    return _with_own_options(tasks[0])


def _with_own_options(task: type["PretextTask"]) -> type["PretextTask"]:
    from sslkit.contract.task import CONTRACT
    from sslkit.tasks.load import RUN_FLAGS  # not at the top: listing needs no pydantic

    if task.contract != CONTRACT:
        newer = "upgrade sslkit" if task.contract > CONTRACT else f"ask for a version of {task.__name__} for this one"
        raise SslkitError(f"{task.__name__} was written for contract {task.contract}, this sslkit has {CONTRACT}", newer)
    shadowing = sorted(set(task.Options.model_fields) & RUN_FLAGS)
    if shadowing:
        raise SslkitError(f"{task.__name__} has options that are run flags: {', '.join(shadowing)}", "rename them in the task")
    return task


# No option of a task may be called like one of these.
RUN_FLAGS = frozenset((*flat_fields(PretrainSpec), *flat_fields(PreviewSpec)))
