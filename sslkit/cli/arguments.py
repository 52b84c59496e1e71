"""What the commands share: reading a spec from flags and file, and printing a result."""

import inspect
import json
import struct
import sys
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_origin

import typer
from pydantic import ValidationError

from sslkit.cli.options import command, complaints, key_values, read_spec_file
from sslkit.cli.output import show
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.options import Spec

S = TypeVar("S", bound=Spec)


_LONGEST_HEADER = 2**25  # bytes
JSON = (bool, "Print exactly one JSON object on stdout.")


SPEC = (str, "Read settings from a .toml or .json file (as a run's spec.json); flags win.")


def add_call(
    app: typer.Typer,
    name: str,
    panel: str,
    summary: str,
    model: type[Spec],
    call: str | None = None,
    printed: Callable[[dict[str, Any]], None] | None = None,
    argument: str | None = None,
) -> None:
    """Add the command that reads a spec, makes a call of `sslkit`, by default of the same name, and shows what it returns.

    `printed` shows it to people in another way than as its fields or the table of its rows. `argument` is a field that is
    given without a flag_name.
    """

    def run(given: dict[str, Any], extras: dict[str, Any]) -> None:
        if (
            argument is not None
            and model.model_fields[argument].is_required()
            and argument not in {**file_values(extras), **given}
        ):
            raise SslkitError(f"{argument.upper()} is missing", f"sslkit {name} {argument.upper()}")
        spec = read_spec(model, given, extras)
        import sslkit

        show(getattr(sslkit, call or name)(spec), extras, printed, details=getattr(spec, "details", False))

    extra, hidden, given_plainly = {"spec": SPEC, "json": JSON}, frozenset[str](), None
    if argument is not None:
        field, hidden = model.model_fields[argument], frozenset({argument})
        kind: Any = list[str] if get_origin(field.annotation) is list else str
        annotation = Annotated[kind | None, typer.Argument(help=field.description)]
        given_plainly = inspect.Parameter(argument, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)
    app.command(name, rich_help_panel=panel)(
        command(run, summary, {"Settings": model}, extra, hidden=hidden, argument=given_plainly, modality=checkpoint_modality())
    )


def checkpoint_modality() -> str | None:
    """Return the modality of the data that the checkpoint on the command line was trained on; None if none says so."""
    path = value_of("--ckpt", sys.argv[1:])
    try:
        with open(path or "", "rb") as stream:
            (size,) = struct.unpack("<Q", stream.read(8))
            header = json.loads(stream.read(min(size, _LONGEST_HEADER)))
        metadata = json.loads(header["__metadata__"]["sslkit"])
        modality = metadata.get("samples", metadata.get("modality"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error, RecursionError):
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


def read_spec(model: type[S], given: dict[str, Any], extras: dict[str, Any]) -> S:
    """Return the spec of flags over `--spec` over defaults; raises SslkitError with a line for every mistake."""
    from_file, flags = file_values(extras), with_pairs(given, model)
    return validated(model, {**from_file, **flags}, one_length(flags, from_file))


def file_values(extras: dict[str, Any]) -> dict[str, Any]:
    """Return the settings in the file of `--spec`, if there is one."""
    return read_spec_file(extras["spec"]) if extras.get("spec") else {}


def one_length(flags: dict[str, Any], from_file: dict[str, Any]) -> list[str]:
    """Let a given length of the run win over the file's, whichever kind it is; complain about two given ones."""
    given = [name for name in ("epochs", "steps", "minutes") if name in flags]
    if given:
        for name in ("epochs", "steps", "minutes"):
            from_file.pop(name, None)
    return [f"{' and '.join(flag_name(name) for name in given)}: give one of them"] if len(given) > 1 else []


def with_pairs(given: dict[str, Any], model: type[Spec]) -> dict[str, Any]:
    """Return given flags with lists of KEY=VALUE as the dicts that the model has."""
    pairs = {name for name, field in model.model_fields.items() if get_origin(field.annotation) is dict}
    return {name: key_values(value, name) if name in pairs else value for name, value in given.items()}


def validated(model: type[S], values: dict[str, Any], others: list[str] | None = None) -> S:
    """Return the validated model; all mistakes, and `others` found elsewhere, are one SslkitError of several lines."""
    try:
        spec = model.model_validate(values)
    except ValidationError as error:
        raise SslkitError("\n".join([*complaints(error, model), *(others or [])])) from error
    if others:
        raise SslkitError("\n".join(others))
    return spec
