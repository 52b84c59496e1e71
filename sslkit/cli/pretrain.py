"""`sslkit pretrain TASK`: run options in one help panel, the task's own in another."""

import inspect
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from sslkit import registry
from sslkit.cli.common import JSON, SPEC, file_values, one_length, show, validated, with_pairs
from sslkit.cli.flags import command, complaints, flag, read_spec_file
from sslkit.console import RANK, print_json, stdout
from sslkit.errors import SslkitError
from sslkit.specs import PretrainSpec

_EXTRA = {"spec": SPEC, "dry_run": (bool, "Print every setting and where it comes from, and stop."), "json": JSON}


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application, with the options of the task that the arguments name."""
    name = named_task(arguments[1:]) if arguments[:1] == ["pretrain"] else None
    if name is None and (file := _value_of("--spec", arguments)):
        named = read_spec_file(file).get("task")
        name = None if named is None else str(named)
    task_class = registry.load_task(name) if name is not None else None
    panels: dict[str, Any] = {"Run": PretrainSpec}
    defaults = {}
    if name is not None and task_class is not None:
        panels = {f"Options of {registry.task_name(name)}": task_class.Options, "Run": PretrainSpec}
        defaults = task_class.defaults
    text = f"{task_class.__doc__}" if task_class and task_class.__doc__ else summary + _listing()
    argument = Annotated[
        str | None,
        typer.Argument(help="An installed task (`sslkit tasks`) or a .py file; its options show in `pretrain TASK --help`."),
    ]
    task = inspect.Parameter("task", inspect.Parameter.KEYWORD_ONLY, annotation=argument, default=None)
    options = command(
        lambda given, extras: _run(given, extras, task_class),
        text,
        panels,
        _EXTRA,
        defaults,
        frozenset({"task", "options"}),
        task,
    )
    app.command("pretrain", rich_help_panel=panel)(options)


def _value_of(option: str, arguments: list[str]) -> str | None:
    """Return what follows an option, after a space or an equals sign."""
    for argument, following in zip(arguments, [*arguments[1:], None], strict=True):
        if argument == option:
            return following
        if argument.startswith(f"{option}="):
            return argument.partition("=")[2]
    return None


def named_task(arguments: list[str]) -> str | None:
    """Return the task among the arguments of `pretrain`: the first that is neither a flag nor a flag's value."""
    switches = {flag(name) for name, field in PretrainSpec.model_fields.items() if field.annotation is bool}
    switches |= {"--dry-run", "--json", "--help"}
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.startswith("-"):
            skip = argument not in switches and "=" not in argument
        else:
            return argument
    return None


def _run(given: dict[str, Any], extras: dict[str, Any], task_class: Any) -> None:
    from_file = file_values(extras)
    if task_class is None:
        raise SslkitError(f"which task? {_listing().strip() or 'none is installed'}", "sslkit pretrain TASK --data DIR")
    flags = with_pairs(given, PretrainSpec)
    given_task, file_task = str(flags.get("task") or ""), str(from_file.get("task") or "")
    if given_task and file_task and registry.task_name(given_task) != registry.task_name(file_task):
        raise SslkitError(f"--spec: {extras['spec']} is for {file_task}, not {given_task}", "leave one of them out")
    own = {name: flags.pop(name) for name in list(flags) if name in task_class.Options.model_fields}
    options = {**from_file.get("options", {}), **own}
    others = one_length(flags, from_file)
    try:
        task_class.Options.model_validate(options)
    except ValidationError as error:
        others += complaints(error, task_class.Options)
    spec = validated(PretrainSpec, {**from_file, **flags, "options": options}, others)
    from sslkit.engine import pretrain
    from sslkit.engine.distributed import joined

    if extras["dry_run"]:
        with joined(spec.device) as world:
            training = pretrain.prepare(spec, world)
        _show_settings(training, spec, flags | own, from_file, task_class, extras)
    else:
        show(pretrain.pretrain(spec), extras)


def _show_settings(
    training: Any, spec: PretrainSpec, flags: dict[str, Any], from_file: dict[str, Any], task_class: Any, extras: dict[str, Any]
) -> None:
    """Print every settled value and its source."""
    settled = training.plan.spec
    values = {name: getattr(settled, name) for name in PretrainSpec.model_fields if name != "options"}
    values |= {"out": str(training.out), **settled.options}
    sources = {}
    for name in values:
        if name in flags:
            sources[name] = "task" if name == "task" else "flag"
        elif name in from_file or name in from_file.get("options", {}):
            sources[name] = str(extras["spec"])
        elif name in task_class.defaults:
            sources[name] = f"default of {training.name}"
        else:
            sources[name] = "default"
        value, _, reason = training.plan.reasons.get(name, "").partition(": ")
        if reason and getattr(spec, name) == "auto":
            values[name], sources[name] = value, f"auto, {reason}"
    if extras["json"]:
        print_json({name: {"value": value, "source": sources[name]} for name, value in values.items()})
    if extras["json"] or RANK > 0:
        return
    for name, value in values.items():
        stdout.print(f"{flag(name):<20} {value!s:<24} {sources[name]}", markup=False)


def _listing() -> str:
    names = registry.names(registry.TASKS)
    return f"\n\nTasks: {', '.join(names)}." if names else ""
