"""Commands about one task, `pretrain` and `preview`: its own options in one help panel, the command's in another."""

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import typer
from pydantic import ValidationError

from sslkit import registry
from sslkit.cli import completion, task_schema
from sslkit.cli.arguments import file_values, one_length, validated, value_of, with_pairs
from sslkit.cli.options import Panel, command, complaints, read_spec_file, spec_panels
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.options import flat_fields
from sslkit.specs.look import PreviewSpec
from sslkit.specs.train import PretrainSpec
from sslkit.tasks.load import load_task, task_name

S = TypeVar("S", PretrainSpec, PreviewSpec)


def add_task_command(
    app: typer.Typer,
    name: str,
    panel: str,
    summary: str,
    arguments: list[str],
    model: type[PretrainSpec] | type[PreviewSpec],
    extra: dict[str, tuple[type, str]],
    run: Callable[[dict[str, Any], dict[str, Any], Any], None],
) -> None:
    """Add a command whose first argument is a task, with the options of the one that the arguments name.

    `run` receives the given fields, the extra options, and the task's class or None.
    """
    chosen = named_task(arguments[1:], model, extra) if arguments[:1] == [name] else None
    if chosen is None and "spec" in extra and (file := value_of("--spec", arguments)):
        from_file = read_spec_file(file).get("task")
        chosen = None if from_file is None else str(from_file)
    task_class, schema = None, None
    if chosen is not None:
        # To show help or complete a line, what the cache knows of the task will do, without importing torch.
        schema = task_schema.stored(chosen) if "--help" in arguments or "_SSLKIT_COMPLETE" in os.environ else None
        if schema is None:
            task_class = load_task(chosen)
            schema = task_schema.describe(task_class)
            task_schema.store(chosen, task_class, schema)
    title = "Run" if model is PretrainSpec else "Settings"
    defaults = {} if schema is None else {key: value for key, value in schema.defaults.items() if key in model.model_fields}
    panels = spec_panels(title, model, None if schema is None else schema.modality, defaults, frozenset({"task", "options"}))
    if schema is None or not schema.summary:
        text = summary + listing()
    else:
        text = schema.summary if model is PretrainSpec else f"{summary}\n\n{schema.summary}"
    if schema is not None and chosen is not None:
        panels = [Panel(f"Options of {task_name(chosen)}", schema.options), *panels]
    argument = Annotated[
        str | None,
        typer.Argument(
            autocompletion=completion.task,
            help=f"An installed task (`sslkit tasks`) or a .py file; `sslkit {name} TASK --help` shows its options.",
        ),
    ]
    task = inspect.Parameter("task", inspect.Parameter.KEYWORD_ONLY, annotation=argument, default=None)
    options = command(lambda values, extras: run(values, extras, task_class), text, panels, extra, [task])
    app.command(name, rich_help_panel=panel)(options)


def named_task(
    arguments: list[str], model: type[PretrainSpec] | type[PreviewSpec], extra: dict[str, tuple[type, str]]
) -> str | None:
    """Return the task among the arguments of a command: the first that is neither a flag nor a flag's value."""
    switches = {flag_name(name) for name, field in flat_fields(model).items() if field.annotation is bool}
    switches |= {flag_name(name) for name, (kind, _) in extra.items() if kind is bool} | {"--help"}
    skip = False
    for argument in arguments:
        if skip:
            skip = False
        elif argument.startswith("-"):
            skip = argument not in switches and "=" not in argument
        else:
            return argument
    return None


def task_spec(
    model: type[S], values: dict[str, Any], extras: dict[str, Any], task_class: Any
) -> tuple[S, dict[str, Any], dict[str, Any]]:
    """Return the spec, the fields that flags gave, and those of `--spec`; all mistakes are one SslkitError of several lines."""
    from_file = file_values(extras)
    flags = with_pairs(values, model)
    given_task, file_task = str(flags.get("task") or ""), str(from_file.get("task") or "")
    if given_task and file_task and task_name(given_task) != task_name(file_task):
        raise SslkitError(f"{extras['spec']} is for {file_task}, not {given_task}", "leave one of them out", flag="spec")
    fields = {} if task_class is None else task_class.Options.model_fields
    task_options = {name: flags.pop(name) for name in list(flags) if name in fields}
    options = {**from_file.get("options", {}), **task_options}
    others = one_length(flags, from_file)
    if task_class is not None:
        try:
            task_class.Options.model_validate(options)
        except ValidationError as error:
            # A run that is gone on with, or looked at, has the options that are not repeated.
            known = _holds_options({**from_file, **flags})
            others += complaints(error, task_class.Options, missing=not known)
    return validated(model, {**from_file, **flags, "options": options}, others), flags | task_options, from_file


def _holds_options(values: dict[str, Any]) -> bool:
    """Return whether there is a run that the options can be read from."""
    if values.get("ckpt") is not None:
        return True
    if not values.get("resume") and values.get("extend_to") is None:
        return False
    from sslkit.engine.run_folder import choose_out, holds_run

    return holds_run(choose_out(values.get("out"), task_name(str(values.get("task"))), resume=True))


def listing() -> str:
    """Return a sentence that names the installed tasks."""
    names = registry.names(registry.TASKS)
    return f"\n\nTasks: {', '.join(names)}." if names else ""
