"""The base of every spec, and how a field becomes a flag. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

Auto = Literal["auto"]


Pixels = Annotated[int, Field(ge=8, le=4096)]


Count = Annotated[int, Field(ge=1)]


Looks = Annotated[int, Field(ge=0)]


Processes = Annotated[int, Field(ge=0, le=256)]


def _listed(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


# A single one may be written without brackets.
Texts = Annotated[list[str], BeforeValidator(_listed)]


Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], BeforeValidator(_listed), Field(min_length=1)]


class Spec(BaseModel):
    """Hold validated settings that never change; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)


class TaskOptions(Spec):
    """Hold the options of one pretext task; each field becomes a flag of `sslkit pretrain TASK`."""


class DataSpec(Spec):
    """Hold what every command that reads images is told."""

    data: str | None = Field(
        default=None,
        description="Folder, .txt list, .csv with a `path` column, .npy/.npz or wds:SHARDS.tar; text: .txt or a folder of it.",
    )
    label: str | None = Field(default=None, description="Column of the CSV, or extension in shards, that holds the labels.")
    size: Pixels | Auto = Field(
        default="auto",
        description="Pixels of an image or frame, words of text, milliseconds of sound; auto: fits data or checkpoint.",
    )
    batch_size: int = Field(default=256, ge=2, description="Images per step.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything that is drawn.")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps.")
    workers: Processes | Auto = Field(default="auto", description="Processes that read and decode.")
    cache: Literal["auto", "on", "off"] = Field(default="auto", description="Keep decoded canvases in $SSLKIT_CACHE.")
    cache_limit: float = Field(default=20, gt=0, description="Gigabytes the canvas cache may take.")
    reindex: bool = Field(default=False, description="Read the data folder anew instead of trusting folder times.")


def path_options(options: type[TaskOptions]) -> list[str]:
    """Return the names of a task's options that are paths: absolute in a run's spec, and in no checkpoint."""
    return [name for name, field in options.model_fields.items() if Path in (field.annotation, *get_args(field.annotation))]


def limits(field: FieldInfo) -> list[Any]:
    """Return the constraints of a field; for `Annotated[int, ...] | Literal`, those of the number."""
    return [*field.metadata, *_nested_limits(field.annotation)]


def _nested_limits(annotation: Any) -> list[Any]:
    limits: list[Any] = []
    if get_origin(annotation) is Annotated:
        for extra in get_args(annotation)[1:]:
            limits += extra.metadata if isinstance(extra, FieldInfo) else [extra]
    for member in get_args(annotation):
        if not isinstance(member, FieldInfo | Ge | Le | Gt | Lt | MultipleOf):
            limits += _nested_limits(member)
    return limits


def alternatives(annotation: Any) -> list[Any]:
    """Return the members of a union without None, annotations taken off."""
    if get_origin(annotation) is Annotated:
        return alternatives(get_args(annotation)[0])
    if isinstance(annotation, type) or get_origin(annotation) in (Literal, dict):
        return [annotation]
    members = get_args(annotation) if get_origin(annotation) is Union or get_args(annotation) else (annotation,)
    return [kind for member in members if member is not type(None) for kind in alternatives(member)]
