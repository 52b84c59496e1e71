"""Turn pydantic fields into command-line options, and their complaints into one line per flag_name."""

import inspect
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from annotated_types import Ge, Gt, Le, Lt, MultipleOf
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from sslkit import registry
from sslkit.cli.completion import COMPLETES
from sslkit.contract.errors import SslkitError, did_you_mean, flag_name
from sslkit.contract.options import DataOptions, alternatives, flat_fields, limits

_PLURAL = {int: "a whole number", float: "a number", bool: "true or false", str: "text", Path: "a path"}


@dataclass(frozen=True)
class FlagText:
    """What the command line shows of one field: plain values, so that they can be kept in the cache."""

    name: str
    help: str
    kind: str  # `switch`, `off-switch` (true by default), `list` or `value`
    metavar: str
    completes: str | None = None


def flag_texts(fields: Mapping[str, FieldInfo], defaults: Mapping[str, Any]) -> list[FlagText]:
    """Describe fields; `defaults` replace the fields' own in the help."""
    texts = []
    for name, field in fields.items():
        default = defaults.get(name, field.default)
        accepted = " or ".join(part for part in (_bounds(field), _choices(field.annotation)) if part)
        has_default = default not in (None, {}, []) and not isinstance(default, bool) and not field.is_required()
        listed = ", ".join(map(str, default)) if isinstance(default, list) else default
        remarks = "; ".join(part for part in (accepted, f"default {listed}" if has_default else "") if part)
        help_text = f"{field.description or ''} ({remarks})" if remarks else field.description or ""
        if bool in alternatives(field.annotation):
            # The user can turn off what is on by default, or on for a reason of its own (None).
            kind, metavar = "switch" if default is False else "off-switch", ""
        elif get_origin(field.annotation) is dict:
            kind, metavar = "list", "KEY=VALUE"
        else:
            kind, metavar = "list" if get_origin(field.annotation) is list else "value", _metavar(field.annotation)
        extra = field.json_schema_extra
        completes = str(extra["completes"]) if isinstance(extra, dict) and "completes" in extra else None
        texts.append(FlagText(name, help_text, kind, metavar, completes))
    return texts


@dataclass(frozen=True)
class Panel:
    """A group of flags with a title; a hidden one is accepted, so as to be refused by name, and not shown."""

    title: str
    flags: list[FlagText]
    hidden: bool = False


def spec_panels(
    title: str, model: type[BaseModel], modality: str | None, defaults: Mapping[str, Any], left_out: frozenset[str]
) -> list[Panel]:
    """Return the panels of a spec: its own fields, then a panel for each table of data options.

    Where the `modality` of the data is known, the tables of other modalities are hidden.
    """
    tables = {name: table for name, field in model.model_fields.items() if (table := data_table(field)) is not None}
    fields = {name: field for name, field in model.model_fields.items() if name not in tables and name not in left_out}
    accepted = tables if modality is None else accepted_tables(modality)
    visible = [name for name in tables if name in accepted]
    return [
        Panel(title, flag_texts(fields, defaults)),
        *(
            Panel(
                f"{name.replace('_', ' ').capitalize()} data", flag_texts(tables[name].model_fields, {}), name not in accepted
            )
            for name in [*visible, *(name for name in tables if name not in accepted)]
        ),
    ]


def command(
    run: Callable[[dict[str, Any], dict[str, Any]], None],
    summary: str,
    panels: list[Panel],
    extra: Mapping[str, tuple[type, str]],
    arguments: Sequence[inspect.Parameter] = (),
) -> Callable[..., None]:
    """Return a function for Typer with an option for every flag of the panels.

    Options arrive as text and only where given, so that pydantic reports all mistakes at once. `extra` are options of
    the command line only; `arguments` are given without a flag. `run` receives the given fields and the extra options.
    """
    parameters = [*arguments]
    parameters += [_parameter(flag, panel) for panel in panels for flag in panel.flags]
    for name, (kind, text) in extra.items():
        default: Any = False if kind is bool else None
        option = typer.Option(flag_name(name), help=text, rich_help_panel="Command line", show_default=False)
        annotation = Annotated[bool, option] if kind is bool else Annotated[kind | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default))

    def function(**values: Any) -> None:
        extras = {name: values.pop(name) for name in extra}
        run({name: value for name, value in values.items() if value not in (None, [])}, extras)

    function.__doc__ = summary
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def _parameter(flag: FlagText, panel: Panel) -> inspect.Parameter:
    settings: dict[str, Any] = {
        "help": flag.help,
        "rich_help_panel": panel.title,
        "show_default": False,
        "hidden": panel.hidden,
    }
    if flag.completes is not None:
        settings["autocompletion"] = COMPLETES[flag.completes]
    name = flag_name(flag.name)
    kind: Any
    if flag.kind in ("switch", "off-switch"):
        names = f"{name}/--no-{name[2:]}" if flag.kind == "off-switch" else name
        kind = Annotated[bool | None, typer.Option(names, **settings)]
    elif flag.kind == "list":
        kind = Annotated[list[str] | None, typer.Option(name, metavar=flag.metavar, **settings)]
    else:
        kind = Annotated[str | None, typer.Option(name, metavar=flag.metavar, **settings)]
    return inspect.Parameter(flag.name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=None)


def data_table(field: FieldInfo) -> type[DataOptions] | None:
    """Return the data options that a field of a spec holds as a table, None for any other field."""
    table = field.annotation
    return table if isinstance(table, type) and issubclass(table, DataOptions) else None


def accepted_tables(modality: str) -> tuple[str, ...]:
    """Return the tables of data options that data of a modality has."""
    options = registry.data_options().get(modality)
    return (modality,) if options is None else (modality, *options.parts)


def read_spec_file(path: str) -> dict[str, Any]:
    """Return the fields in a .toml or .json file."""
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8")
        values = tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise SslkitError(f"cannot read {path}: {error.strerror}", flag="spec") from error
    except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
        kind = "TOML" if file.suffix == ".toml" else "JSON"
        raise SslkitError(f"{path} is not {kind}: {error}", flag="spec") from error
    if not isinstance(values, dict):
        raise SslkitError(f"{path} holds no table of settings", flag="spec")
    values = {key.replace("-", "_"): value for key, value in values.items()}
    options = values.get("options", {})
    if not isinstance(options, dict):
        raise SslkitError(f"options in {path} should be a table of the task's options (got {options})", flag="spec")
    if options:
        values["options"] = dict(_named(options))
    return values


def _named(options: dict[str, Any], task: str = "") -> Iterator[tuple[str, Any]]:
    """Return a task's options by field; those of one among several may stand in a table of its name."""
    for key, value in options.items():
        if isinstance(value, dict) and not task:
            yield from _named(value, f"{key}__")
        else:
            yield task + key.replace("-", "_").replace(".", "__"), value


def key_values(items: list[str], name: str) -> dict[str, str]:
    """Return `KEY=VALUE` items as a dict."""
    bad = [item for item in items if "=" not in item]
    if bad:
        raise SslkitError(f"{flag_name(name)}: should be KEY=VALUE (got {bad[0]})")
    return dict(item.split("=", 1) for item in items)


def complaints(error: ValidationError, model: type[BaseModel], missing: bool = True) -> list[str]:
    """Return one line per field: the flag, what was expected and what was given; `missing` ones too, unless they may be."""
    lines: dict[str, str] = {}
    fields = flat_fields(model)
    for problem in error.errors(include_url=False):
        location = [str(part) for part in problem["loc"]]
        in_table = len(location) > 1 and location[0] in model.model_fields and data_table(model.model_fields[location[0]])
        name = location[1] if in_table else location[0] if location else ""
        if problem["type"] == "extra_forbidden":
            known = [flag_name(known) for known in fields]
            near = did_you_mean(flag_name(name), known, listing=[])
            lines[name] = f"{flag_name(name)}: no such setting{f' ({near})' if near else ''}"
        elif problem["type"] == "missing":
            if not missing:
                continue
            described = fields[name].description or "it has no default"
            lines[name] = f"{flag_name(name)} is missing ({described.rstrip('.')})"
        elif name in fields:
            value = problem["input"] if len(location) == 1 or not isinstance(problem["input"], dict) else "..."
            by_validator = problem["type"] == "value_error"  # by a validator of the field's own
            message = problem["msg"].removeprefix("Value error, ") if by_validator else f"should be {expected(fields[name])}"
            lines.setdefault(name, f"{flag_name(name)}: {message} (got {value})")
        else:
            lines.setdefault(name, problem["msg"].removeprefix("Value error, "))
    return list(lines.values())


def expected(field: FieldInfo) -> str:
    """Return in words what a field accepts: `a whole number, 1 or more, or auto`."""
    if any(getattr(limit, "pattern", None) for limit in field.metadata):
        return (field.description or "").rstrip(".")  # which lists what the pattern lets through
    words = [word for kind in alternatives(field.annotation) for word in _words(kind)]
    bounds = _bounds(field)
    if bounds:
        words[0] += f", {bounds},"
    if len(words) == 1:
        return words[0].rstrip(",")
    return f"{', '.join(words[:-1])} or {words[-1]}".replace(",,", ",")


def _words(kind: Any) -> list[str]:
    if get_origin(kind) is Literal:
        return [str(value) for value in get_args(kind)]
    if get_origin(kind) is dict:
        return ["KEY=VALUE"]
    return [_PLURAL.get(kind, str(kind))]


def _metavar(annotation: Any) -> str:
    """Return what stands for the value in the help: short, so that the texts beside it have room."""
    names = {int: "INT", float: "NUMBER", str: "TEXT", Path: "PATH"}
    return next((names[kind] for kind in alternatives(annotation) if kind in names), "CHOICE")


def _choices(annotation: Any) -> str:
    """Return the words a field accepts, such as `auto, on or off`."""
    words = [str(value) for kind in alternatives(annotation) if get_origin(kind) is Literal for value in get_args(kind)]
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _bounds(field: FieldInfo) -> str:
    """Return the numeric limits of a field in words."""
    low = high = step = ""
    for limit in limits(field):
        if isinstance(limit, Ge):
            low = f"{_plain(limit.ge)} or more"
        elif isinstance(limit, Gt):
            low = f"above {_plain(limit.gt)}"
        elif isinstance(limit, Le):
            high = f"at most {_plain(limit.le)}"
        elif isinstance(limit, Lt):
            high = f"below {_plain(limit.lt)}"
        elif isinstance(limit, MultipleOf):
            step = f"a multiple of {_plain(limit.multiple_of)}"
    if low.endswith(" or more") and high.startswith("at most"):
        return f"{low.removesuffix(' or more')} to {high.removeprefix('at most ')}"
    return ", ".join(part for part in (low, high, step) if part)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else f"{value:,}" if value < 2**20 else f"2^{value.bit_length() - 1}"
