"""Turn pydantic fields into command-line options, and their complaints into one line per flag_name."""

import inspect
import json
import tomllib
from collections.abc import Callable, Iterator, Mapping
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


def command(
    run: Callable[[dict[str, Any], dict[str, Any]], None],
    summary: str,
    panels: Mapping[str, type[BaseModel]],
    extra: Mapping[str, tuple[type, str]],
    defaults: Mapping[str, Any] | None = None,
    hidden: frozenset[str] = frozenset(),
    argument: inspect.Parameter | None = None,
    modality: str | None = None,
) -> Callable[..., None]:
    """Return a function for Typer with an option for every field of the models, one help panel each.

    Options arrive as text and only where given, so that pydantic reports all mistakes at once. `extra` are options of
    the command line only; `defaults` replace the models' in the help; `hidden` fields get no option. `argument` is
    what is given without a flag_name. `run` receives the given fields and the extra options.
    """
    parameters = [] if argument is None else [argument]
    for panel, model in panels.items():
        for name, field in model.model_fields.items():
            if (table := data_table(field)) is not None:
                shown = modality is None or name in accepted_tables(modality)
                title = f"{name.replace('_', ' ').capitalize()} data"
                parameters += [_parameter(key, inner, title, {}, shown) for key, inner in table.model_fields.items()]
            elif name not in hidden:
                parameters.append(_parameter(name, field, panel, dict(defaults or {})))
    for name, (kind, text) in extra.items():
        default: Any = False if kind is bool else None
        option = typer.Option(flag_name(name), help=text, rich_help_panel="Command line", show_default=False)
        annotation = Annotated[bool, option] if kind is bool else Annotated[kind | None, option]
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default))

    def function(**values: Any) -> None:
        extras = {name: values.pop(name) for name in extra}
        given = {name: value for name, value in values.items() if value not in (None, [])}
        run(given, extras)

    function.__doc__ = summary
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return function


def _parameter(name: str, field: FieldInfo, panel: str, defaults: dict[str, Any], visible: bool = True) -> inspect.Parameter:
    default = defaults.get(name, field.default)
    text = field.description or ""
    accepted = " or ".join(part for part in (_bounds(field), _choices(field.annotation)) if part)
    shown = default not in (None, False, {}, []) and not field.is_required()
    listed = ", ".join(map(str, default)) if isinstance(default, list) else default
    remarks = "; ".join(part for part in (accepted, f"default {listed}" if shown else "") if part)
    settings: dict[str, Any] = {
        "help": f"{text} ({remarks})" if remarks else text,
        "rich_help_panel": panel,
        "show_default": False,
        "hidden": not visible,
    }
    if isinstance(field.json_schema_extra, dict) and "completes" in field.json_schema_extra:
        settings["autocompletion"] = COMPLETES[str(field.json_schema_extra["completes"])]
    annotation: Any
    if field.annotation is bool:
        names = f"{flag_name(name)}/--no-{flag_name(name)[2:]}" if default is True else flag_name(name)
        annotation = Annotated[bool | None, typer.Option(names, **settings)]
    elif get_origin(field.annotation) is dict:
        annotation = Annotated[list[str] | None, typer.Option(flag_name(name), metavar="KEY=VALUE", **settings)]
    elif get_origin(field.annotation) is list:
        annotation = Annotated[list[str] | None, typer.Option(flag_name(name), metavar=_metavar(field.annotation), **settings)]
    else:
        annotation = Annotated[str | None, typer.Option(flag_name(name), metavar=_metavar(field.annotation), **settings)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)


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
            given = problem["input"] if len(location) == 1 or not isinstance(problem["input"], dict) else "..."
            told = problem["type"] == "value_error"  # by a validator of the field's own
            said = problem["msg"].removeprefix("Value error, ") if told else f"should be {expected(fields[name])}"
            lines.setdefault(name, f"{flag_name(name)}: {said} (got {given})")
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
