"""What the commands share: reading a spec from flags and file, and printing a result."""

import inspect
import sys
from typing import Annotated, Any, TypeVar, get_origin

import typer
from pydantic import ValidationError

from sslkit import registry
from sslkit.cli.options import command, complaints, key_values, read_spec_file, spec_panels
from sslkit.cli.output import show
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.options import Spec
from sslkit.engine.model_header import read_metadata
from sslkit.registry import Entry
from sslkit.specs.data import MAIN_PART

S = TypeVar("S", bound=Spec)


JSON = (bool, "Print exactly one JSON object on stdout.")


SPEC = (str, "Read settings from a .toml or .json file (as a run's spec.json); flags win.")


def add_entry(app: typer.Typer, entry: Entry, panel: str) -> None:
    """Add the verb of an entry point, an evaluation or a command: flags from its spec, and what it returns printed."""
    model = spec_of(entry)
    arguments = arguments_of(entry)
    extra: dict[str, tuple[type, str]] = {"spec": SPEC, "json": JSON}

    def run(values: dict[str, Any], extras: dict[str, Any]) -> None:
        for name in arguments:
            if model.model_fields[name].is_required() and name not in {**file_values(extras), **values}:
                usage = " ".join(["sslkit", entry.name, *map(str.upper, arguments)])
                raise SslkitError(f"{name.upper()} is missing", usage)
        spec = read_spec(model, values, extras)
        verb = registry.load(entry)()
        result = verb.run(spec)
        show(result, bool(extras["json"]), getattr(verb, "lines", None), bool(getattr(spec, "details", False)))

    panels = spec_panels("Settings", model, checkpoint_modality(), {}, frozenset(arguments))
    parameters = [_argument(name, model) for name in arguments]
    app.command(entry.name, rich_help_panel=panel)(command(run, entry.summary, panels, extra, parameters))


def _argument(name: str, model: type[Spec]) -> inspect.Parameter:
    """Return what Typer needs of a field that is given without a flag."""
    field = model.model_fields[name]
    kind: Any = list[str] if get_origin(field.annotation) is list else str
    annotation = Annotated[kind | None, typer.Argument(help=field.description)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)


def arguments_of(entry: Entry) -> tuple[str, ...]:
    """Return the fields of a verb's spec that are given without a flag, in their order."""
    positional = entry.constants.get("argument") or ()
    return (positional,) if isinstance(positional, str) else tuple(positional)


def spec_of(entry: Entry) -> type[Spec]:
    """Return the spec of a verb, by its torch-free entry point if it has one."""
    if entry.name in registry.names(registry.OPTIONS):
        model = registry.load(registry.find(registry.OPTIONS, entry.name))
    else:
        model = registry.load(entry).Options
    if not (isinstance(model, type) and issubclass(model, Spec)):
        raise SslkitError(f"{entry.name} of package {entry.package}: {model!r} is not a spec")
    return model


def checkpoint_modality() -> str | None:
    """Return the modality of the data that the checkpoint on the command line was trained on; None if there is none."""
    arguments = sys.argv[1:]
    metadata = read_metadata(value_of("--ckpt", arguments) or "")
    part = value_of("--part", arguments)
    try:
        described = metadata if part in (None, MAIN_PART) else metadata["parts"][part]
        modality = described.get("samples", described.get("modality"))
    except (KeyError, TypeError, AttributeError):
        return None  # the command itself reports what is wrong with the file
    return modality if isinstance(modality, str) else None


def value_of(option: str, arguments: list[str]) -> str | None:
    """Return what follows an option, after a space or an equals sign."""
    for argument, following in zip(arguments, [*arguments, None][1:], strict=True):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def read_spec(model: type[S], values: dict[str, Any], extras: dict[str, Any]) -> S:
    """Return the spec of flags over `--spec` over defaults; raises SslkitError with a line for every mistake."""
    from_file, flags = file_values(extras), with_pairs(values, model)
    return validated(model, {**from_file, **flags}, one_length(flags, from_file))


def file_values(extras: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in the file of `--spec`, if there is one."""
    return read_spec_file(extras["spec"]) if extras.get("spec") else {}


def one_length(flags: dict[str, Any], from_file: dict[str, Any]) -> list[str]:
    """Let the length of the run given by a flag replace the file's, whichever kind it is; report two of them."""
    lengths = [name for name in ("epochs", "steps", "minutes") if name in flags]
    if lengths:
        for name in ("epochs", "steps", "minutes"):
            from_file.pop(name, None)
    return [f"{' and '.join(flag_name(name) for name in lengths)}: give only one"] if len(lengths) > 1 else []


def with_pairs(values: dict[str, Any], model: type[Spec]) -> dict[str, Any]:
    """Return given flags with lists of KEY=VALUE as the dicts that the model has."""
    pairs = {name for name, field in model.model_fields.items() if get_origin(field.annotation) is dict}
    return {name: key_values(value, name) if name in pairs else value for name, value in values.items()}


def validated(model: type[S], values: dict[str, Any], others: list[str] | None = None) -> S:
    """Return the validated model; all mistakes, and `others` found elsewhere, are one SslkitError of several lines."""
    try:
        spec = model.model_validate(values)
    except ValidationError as error:
        raise SslkitError("\n".join([*complaints(error, model), *(others or [])])) from error
    if others:
        raise SslkitError("\n".join(others))
    return spec
