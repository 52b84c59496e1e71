"""The spec of commands that read data: where it is, and a table of options for each installed modality."""

import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, TypeVar

from pydantic import AfterValidator, Field, ValidationError, create_model, model_validator

from sslkit import registry
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.options import Auto, DataOptions, Processes, Spec

O = TypeVar("O", bound=DataOptions)  # noqa: E741
_OPTIONS = registry.data_options()
_OWNERS = {field: name for name, options in _OPTIONS.items() for field in options.model_fields}  # flags are unique: a test


MAIN_PART = "encoder"  # of a checkpoint with several encoders


PART = Field(default=MAIN_PART, description="Encoder to use, of a checkpoint that holds several.")


DEVICE = Field(default="auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:N or mps.")


ANNOTATIONS = ("label", "label_pattern", "group", "group_pattern")  # where labels and groups of samples stand


def _check_pattern(pattern: str) -> str:
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ValueError(f"{pattern} is not a regular expression: {error}") from error
    if groups != 1:
        raise ValueError(f"{pattern} has {groups} groups: put parentheses around the one part that counts")
    return pattern


Pattern = Annotated[str, AfterValidator(_check_pattern)]


if TYPE_CHECKING:

    class _Tables(Spec):
        pass
else:
    _Tables = create_model("_Tables", __base__=Spec, **{name: (options, options()) for name, options in _OPTIONS.items()})


class ModalitySpec(_Tables):
    """Base of a spec with a table of data options for each modality, such as `[image]`; a flag finds its table by its name."""

    @model_validator(mode="before")
    @classmethod
    def _sort_into_tables(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        sorted_values = {name: value for name, value in values.items() if name in cls.model_fields or name not in _OWNERS}
        for name in values.keys() - sorted_values.keys():
            table = sorted_values.get(_OWNERS[name], {})
            known = table.model_dump(exclude_unset=True) if isinstance(table, DataOptions) else dict(table)
            sorted_values[_OWNERS[name]] = {**known, name: values[name]}
        return sorted_values

    def table(self, options: type[O]) -> O:
        """Return the data options of one modality."""
        table = getattr(self, options.modality)
        assert isinstance(table, options)
        return table

    def data_values(self) -> dict[str, Any]:
        """Return the data options that were set, by flag."""
        return {
            field: value for name in _OPTIONS for field, value in getattr(self, name).model_dump(exclude_unset=True).items()
        }

    def sample_values(self) -> dict[str, Any]:
        """Return the data options that were set and change what a sample is, not only how it is stored."""
        return {
            field: value
            for field, value in self.data_values().items()
            if value is not None and field not in _OPTIONS[_OWNERS[field]].storage
        }

    def with_recorded(self, recorded: Any, same_data: bool) -> Self:
        """Return a copy with the options that evaluations take from a recorded spec, unless they were set.

        Of the `same_data`, also those that say how it is stored.
        """
        values: dict[str, Any] = {}
        for name, options in _OPTIONS.items():
            table = recorded.get(name) if isinstance(recorded, dict) else None
            if isinstance(table, dict):
                fields = options.kept + (options.storage if same_data else ())
                defaults = {field: options.model_fields[field].default for field in fields}
                # Nobody asked for a default: the text of pairs has options that their images lack.
                chosen = {field: table[field] for field in fields if field in table and table[field] != defaults[field]}
                try:
                    values |= options.model_validate(chosen).model_dump(exclude_unset=True)
                except ValidationError as error:
                    first = error.errors()[0]
                    problem = f"it has {first['loc'][0]} {first['input']!r} among its settings"
                    raise SslkitError(problem, "the file was altered", flag="ckpt") from error
        return self.updated({field: value for field, value in values.items() if field not in self.data_values()})

    def is_rule(self, field: str) -> bool:
        """Return whether a data option has a value that the data turns into another."""
        value, rules = self.data_values()[field], _OPTIONS[_OWNERS[field]].rules
        return value == "auto" or value in rules.get(field, ())

    def sample_size(self, modality: str) -> int | None:
        """Return the size of a sample that the user asked for, None if it is left to data or checkpoint."""
        sizes = [getattr(self, name).sample_size() for name in (modality, *_OPTIONS[modality].parts) if name in _OPTIONS]
        return next((size for size in sizes if size is not None), None)

    def updated(self, values: dict[str, Any]) -> Self:
        """Return a copy with other values, by flag; data options go to their tables. Nothing is validated again."""
        fields = {name: value for name, value in values.items() if name in type(self).model_fields}
        tables: dict[str, Any] = {}
        for name in values.keys() - fields.keys():
            owner = _OWNERS[name]
            table = tables.get(owner, getattr(self, owner))
            tables[owner] = table.model_copy(update={name: values[name]})
        return self.model_copy(update={**fields, **tables})

    def check_modality(self, modality: str) -> None:
        """Raise SslkitError for a data option that was set and that data of this modality does not have."""
        accepted = (modality, *_OPTIONS[modality].parts)
        for field in self.data_values():
            if _OWNERS[field] not in accepted:
                flags = ", ".join(flag_name(name) for part in accepted for name in _OPTIONS[part].model_fields)
                hint = f"options of {modality} data: {flags}" if flags else f"{modality} data has no options"
                raise SslkitError(f"applies to {_OWNERS[field]} data only, and this is {modality} data", hint, flag=field)

    def tables(self) -> set[str]:
        """Return the names of all tables."""
        return set(_OPTIONS)

    def other_tables(self, modality: str) -> set[str]:
        """Return the tables of other modalities, which a run's record leaves out."""
        return set(_OPTIONS) - {modality, *_OPTIONS[modality].parts}


class DataSpec(ModalitySpec):
    """Where the data is and how it is read: the part that all commands on data share."""

    data: str | None = Field(
        default=None,
        description="Folder, .txt list, .csv with a `path` column, .npy/.npz/.h5, .parquet, or wds:SHARDS.tar; "
        "text: .txt files, or a .csv or .tsv with `text`.",
    )
    label: str | None = Field(default=None, description="Label column of a .csv or .parquet, or label extension in shards.")
    label_pattern: Pattern | None = Field(default=None, description="Regular expression whose (group) in a path is the label.")
    group: str | None = Field(
        default=None, description="Column or extension like --label, of samples to keep together: speaker, patient."
    )
    group_pattern: Pattern | None = Field(default=None, description="Regular expression whose (group) in a path is the group.")
    batch_size: int = Field(default=256, ge=2, description="Samples per step.")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Random seed.")
    device: str = DEVICE
    workers: Processes | Auto = Field(default="auto", description="Loader processes.")
    cache: Literal["auto", "on", "off", "compact"] = Field(
        default="auto",
        description="Keep decoded samples in $SSLKIT_CACHE; compact: training images as JPEG; auto: what fits.",
    )
    cache_limit: float = Field(
        default=20, gt=0, description="Size limit in GB of decoded samples, and of features, in the cache."
    )
    reindex: bool = Field(default=False, description="List the data folder again, even if it seems unchanged.")

    def starts(self) -> dict[str, str]:
        """Return no files: only pretraining starts parts from checkpoints."""
        return {}
