"""The base of every spec, and how a field becomes a flag. Nothing here imports torch."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.fields import FieldInfo

Auto = Literal["auto"]
Pixels = Annotated[int, Field(ge=8, le=4096)]
Count = Annotated[int, Field(ge=1)]
Looks = Annotated[int, Field(ge=0)]
Processes = Annotated[int, Field(ge=0, le=256)]


def as_list(value: Any) -> Any:
    """Return a list as it is, and a single value as one: it may be written without brackets."""
    return value if isinstance(value, list) else [value]


Texts = Annotated[list[str], BeforeValidator(as_list)]
Numbers = Annotated[list[Count], BeforeValidator(as_list), Field(min_length=1)]
Shares = Annotated[list[Annotated[float, Field(gt=0, le=1)]], BeforeValidator(as_list), Field(min_length=1)]


class Spec(BaseModel):
    """Validated, immutable settings; unknown names are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, defer_build=True)


class TaskOptions(Spec):
    """Options of a pretext task; each field becomes a flag of `sslkit pretrain TASK`."""


class DataOptions(Spec):
    """Data options of one modality; each field is a flag of every command that reads data, and a row of its table in a spec.

    The entry point in `sslkit.modalities` names the subclass, whose module must not import torch.
    """

    modality: ClassVar[str]
    noun: ClassVar[str] = "samples"  # what samples are called, in the plural
    size_unit: ClassVar[str] = "values"  # in which `DataInfo.size` counts
    value_range: ClassVar[str] = ""  # of what an encoder takes: "[0, 1]"
    accepts: ClassVar[str] = "data"  # what `--data` may be: for messages
    parts: ClassVar[tuple[str, ...]] = ()  # modalities whose data options it takes as well
    rules: ClassVar[dict[str, tuple[str, ...]]] = {}  # values that the data turns into others, as it does `auto`
    kept: ClassVar[tuple[str, ...]] = ()  # options that evaluations of a checkpoint take from it
    storage: ClassVar[tuple[str, ...]] = ()  # options that say how the data is stored, which results do not depend on
    paths: ClassVar[tuple[str, ...]] = ()  # options that are paths, which no checkpoint keeps
    record: ClassVar[str]  # `package.module:Class` of its Modality

    def sample_size(self) -> int | None:
        """Return the size of a sample that the user asked for, as `DataInfo.size` counts it; None if left to the data."""
        return None

    @classmethod
    def of_size(cls, size: int) -> dict[str, Any]:
        """Return the option that asks for samples of a size, as `DataInfo.size` counts it; none if there is no such option."""
        return {}


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


def flat_fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Return the fields of a spec by flag: those of its tables of data options beside its own."""
    fields: dict[str, FieldInfo] = {}
    for name, field in model.model_fields.items():
        table = field.annotation
        if isinstance(table, type) and issubclass(table, DataOptions):
            fields |= table.model_fields
        else:
            fields[name] = field
    return fields
