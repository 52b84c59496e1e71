"""Several tasks on one encoder: `sslkit pretrain simclr+rotation --weights 1,0.5 --simclr.temperature 0.2`.

Each task keeps its own transform, head, options and state; loss terms, metrics and entries of a batch carry its name.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from inspect import getattr_static
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field, create_model, field_validator
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.options import TaskOptions
from sslkit.contract.task import Batch, DataInfo, PretextTask, Run, select_needed
from sslkit.pictures import to_rgb

WITHIN = "__"  # between a task and its option in Python, where a flag has a dot


class Joint(PretextTask):
    """Train one encoder on several tasks, whose weighted losses add up; subclasses made by `joint_task` name them."""

    children_of: ClassVar[dict[str, type[PretextTask]]] = {}

    def __init__(self, options: Any, encoder: Encoder, data: DataInfo) -> None:
        super().__init__(options, encoder, data)
        values, tasks = options.model_dump(), {}
        unlabeled = replace(data, classes=(), several_labels=False)
        self.weights_of = dict(zip(self.children_of, map(float, options.weights.split(",")), strict=True))
        for name, child in self.children_of.items():
            child_values = {option: values[name + WITHIN + option] for option in child.Options.model_fields}
            with _own_flags(name, child):
                child_data = data if "label" in child.needs else unlabeled
                tasks[name] = child(child.Options.model_validate(child_values), encoder, child_data)
                exported = tasks[name].exports()
                if "head" in exported and exported["encoder"] is not encoder:
                    raise SslkitError(
                        f"{name} would keep an encoder of its own for its classifier, and the tasks share one",
                        f"turn averaging off: --{name}.ema 0",
                    )
        self.tasks = nn.ModuleDict(tasks)

    def _tasks(self) -> Iterator[tuple[str, PretextTask]]:
        for name, task in self.tasks.items():
            assert isinstance(task, PretextTask)
            yield name, task

    def before_epoch(self, run: Run) -> None:
        """Prepare an epoch in each task."""
        for name, task in self._tasks():
            with _own_flags(name, type(task)):
                task.before_epoch(_ChildRun(run, task.needs))

    def transform(self, batch: Batch) -> Batch:
        """Return what all transforms return, each under its task's name; each gets only what it needs of the batch."""
        return {
            f"{name}.{key}": value
            for name, task in self._tasks()
            for key, value in task.transform(select_needed(batch, task.needs)).items()
        }

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the outputs of all tasks, each under its task's name."""
        outputs: dict[str, Tensor] = {}
        for name, task in self._tasks():
            output = task.predict(_part(batch, name))
            outputs |= {f"{name}.{key}": value for key, value in (output if isinstance(output, dict) else {"": output}).items()}
        return outputs

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the terms of all tasks, weighted."""
        weighted: dict[str, Tensor] = {}
        for name, task in self._tasks():
            terms = task.loss(_child_output(output, name), _part(batch, name))
            weight = self.weights_of[name]
            named = terms if isinstance(terms, dict) else {"loss": terms}
            weighted |= {f"{name}.{term}": weight * value for term, value in named.items()}
        return weighted

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the sums among the terms are divided by."""
        return {f"{n}.{term}": count for n, task in self._tasks() for term, count in task.counts(_part(batch, n)).items()}

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return what all tasks want to see after the step."""
        return {
            f"{name}.{key}": value
            for name, task in self._tasks()
            for key, value in task.remember(_child_output(output, name), _part(batch, name)).items()
        }

    def after_step(self, remembered: Batch) -> None:
        """Update the state of each task."""
        for name, task in self._tasks():
            task.after_step(_part(remembered, name))

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the metrics of all tasks."""
        return {
            f"{name}.{key}": value
            for name, task in self._tasks()
            for key, value in task.metrics(_child_output(output, name), _part(batch, name)).items()
        }

    def chance(self) -> dict[str, float]:
        """Return what a guess reaches in each task."""
        return {f"{name}.{key}": level for name, task in self._tasks() for key, level in task.chance().items()}

    def param_groups(self) -> list[dict[str, Any]]:
        """Return the exceptions of all tasks."""
        return [group for _, task in self._tasks() for group in task.param_groups()]

    def parts(self) -> list[tuple[str, PretextTask, float]]:
        """Return this task and those inside."""
        return [("", self, 1.0), *((name, task, self.weights_of[name]) for name, task in self._tasks())]

    def reasons(self) -> dict[str, str]:
        """Return what `auto` became in each task."""
        return {f"{name}.{option}": why for name, task in self._tasks() for option, why in task.reasons().items()}

    def exports(self) -> dict[str, nn.Module]:
        """Keep the shared encoder, and what else tasks keep; of teachers none, as there may be several."""
        return {key: value for _, task in self._tasks() for key, value in task.exports().items()} | {"encoder": self.encoder}

    def metadata(self) -> dict[str, Any]:
        """Return what each task adds to the checkpoint's description, by its name."""
        return {name: metadata for name, task in self._tasks() if (metadata := task.metadata())}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor | None:
        """Return the pictures of all tasks side by side."""
        columns: list[Tensor] = []
        for name, task in self._tasks():
            originals = {"original": batch["original"]} if "original" in batch else {}
            part = {**_part(batch, name), **originals}
            pictures = task.preview(part, None if output is None else _child_output(output, name))
            if pictures is not None:
                columns.append(to_rgb(pictures))
        if not columns:
            return None
        rows, side = max(map(len, columns)), max(pictures.shape[-1] for pictures in columns)
        padded = []
        for pictures in columns:  # smaller ones on white, and white below those of fewer rows
            right, below = side - pictures.shape[-1], side - pictures.shape[-2]
            padded.append(F.pad(pictures, (0, right, 0, below, 0, 0, 0, 0, 0, rows - len(pictures)), value=1.0))
        return torch.cat(padded, dim=1)


class _ChildRun:
    """The engine as one task inside sees it: without the labels that only others need."""

    def __init__(self, run: Run, needs: tuple[str, ...]) -> None:
        self._run, self._needs = run, needs
        self.features, self.sample_balanced = run.features, run.sample_balanced
        self.reset_optimizer_state = run.reset_optimizer_state

    def batch(self, count: int, select: Callable[[Batch], Batch] = lambda batch: batch) -> Batch:
        """Return samples as this task's `transform` gets them."""
        return self._run.batch(count, lambda batch: select(select_needed(batch, self._needs)))

    def map(self, function: Callable[[Batch], Tensor]) -> Tensor:
        """Return a function of all samples as this task's `transform` gets them."""
        return self._run.map(lambda batch: function(select_needed(batch, self._needs)))


class _Part(Mapping[str, Any]):
    """One task's entries of a batch, as a view: a batch of several processes gathers only what is read."""

    def __init__(self, batch: Mapping[str, Any], name: str) -> None:
        self._batch, self._prefix = batch, f"{name}."

    def __getitem__(self, key: str) -> Any:
        return self._batch[self._prefix + key]

    def __iter__(self) -> Iterator[str]:
        return (key.removeprefix(self._prefix) for key in self._batch if key.startswith(self._prefix))

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _part(batch: Mapping[str, Any], name: str) -> Batch:
    """Return a task's entries of a batch."""
    if isinstance(batch, dict):
        return {key.removeprefix(f"{name}."): value for key, value in batch.items() if key.startswith(f"{name}.")}
    return _Part(batch, name)


def _child_output(output: Mapping[str, Tensor], name: str) -> Any:
    """Return one task's output: a single tensor, or several by name."""
    part = _part(output, name)
    return part[""] if list(part) == [""] else part


def _own_flags(name: str, child: type[PretextTask]) -> AbstractContextManager[None]:
    """Make a task's errors name its options as the joint task's flags: `--moco.queue`, not `--queue`."""
    return renamed_flags({option: name + WITHIN + option for option in child.Options.model_fields})


def joint_task(children: dict[str, type[PretextTask]]) -> type[Joint]:
    """Return a task that trains one encoder on several; raises SslkitError if they cannot share one."""
    title = "+".join(children)
    modalities = {name: child.modality for name, child in children.items()}
    if len(set(modalities.values())) > 1:
        listed = ", ".join(f"{name} reads {modality}" for name, modality in modalities.items())
        raise SslkitError(f"{title}: {listed}", "tasks that share an encoder read the same")
    encoded = {name: child.encodes for name, child in children.items()}
    if len(set(encoded.values())) > 1:
        listed = ", ".join(f"{name} encodes {modality}" for name, modality in encoded.items())
        raise SslkitError(f"{title}: {listed}", "tasks that share an encoder encode the same")
    plain = getattr_static(PretextTask, "build_encoder")
    specialized = [name for name, child in children.items() if getattr_static(child, "build_encoder") is not plain]
    if specialized:
        raise SslkitError(f"{title}: {specialized[0]} builds an encoder of its own kind", "it can't share one with other tasks")
    unnamed = [name for name in children if not name.isidentifier()]
    if unnamed:
        raise SslkitError(f"{title}: {unnamed[0]} cannot stand in a flag, as in --TASK.option", "rename the file: my_task.py")
    fields: dict[str, Any] = {
        "weights": (
            str,
            Field(
                default=",".join("1" * len(children)),
                description=f"Weights of the losses of {' and '.join(children)}, with commas between.",
            ),
        )
    }
    for name, child in children.items():
        fields |= {f"{name}{WITHIN}{key}": (field.annotation, field) for key, field in child.Options.model_fields.items()}

    def counted(weights: str) -> str:
        words = [word for word in weights.split(",") if re.fullmatch(r"\d*\.?\d+", word)]
        if len(words) != len(children) or len(words) != weights.count(",") + 1 or not any(map(float, words)):
            raise ValueError(
                f"should be {len(children)} numbers, not below 0 and not all 0, one for each of {', '.join(children)}"
            )
        return weights

    options = create_model(
        "Options",
        __base__=TaskOptions,
        __validators__={"counted": field_validator("weights")(counted)},
        **fields,
    )
    first = next(iter(children.values()))
    encoders = [child.defaults["encoder"] for child in children.values() if "encoder" in child.defaults]
    defaults = {**({"encoder": encoders[0]} if encoders else {}), **first.defaults}
    return type(
        title,
        (Joint,),
        {
            "__doc__": f"Train one encoder on {' and '.join(children)}; settings are those of {next(iter(children))}.",
            "Options": options,
            "children_of": children,
            "modality": first.modality,
            "encodes": first.encodes,
            "requires": tuple(dict.fromkeys(requirement for child in children.values() for requirement in child.requires)),
            "masked": all(child.masked for child in children.values()),
            "couples_samples": any(child.couples_samples for child in children.values()),
            "encoder_inputs": tuple(f"{name}.{key}" for name, child in children.items() for key in child.encoder_inputs),
            "visible_targets": tuple(f"{name}.{key}" for name, child in children.items() for key in child.visible_targets),
            "needs": tuple(dict.fromkeys(requirement for child in children.values() for requirement in child.needs)),
            "several_labels": all(child.several_labels for child in children.values() if "label" in child.needs),
            "defaults": defaults,
            "example_options": classmethod(_example_options),
        },
    )


def requirements(task: type[PretextTask], name: str) -> dict[str, tuple[str, ...]]:
    """Return what a task called `name`, or each of those inside, requires of the encoder."""
    children = task.children_of if issubclass(task, Joint) else {name: task}
    return {name: child.requires for name, child in children.items()}


def _example_options(cls: type[Joint], folder: Path) -> dict[str, Any]:
    return {
        f"{name}{WITHIN}{option}": value
        for name, child in cls.children_of.items()
        for option, value in child.example_options(folder).items()
    }
