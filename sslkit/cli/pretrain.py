"""`sslkit pretrain TASK`."""

import dataclasses
from typing import Any

import typer

from sslkit.cli.arguments import JSON, SPEC
from sslkit.cli.options import accepted_tables
from sslkit.cli.output import field_lines, show
from sslkit.cli.task_command import add_task_command, listing, task_spec
from sslkit.console import RANK, duration, print_json, stdout
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.registry import load_modality
from sslkit.specs.train import PretrainSpec

_EXTRA = {"spec": SPEC, "dry_run": (bool, "Print every setting and where it comes from, and stop."), "json": JSON}


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application, with the options of the task that the arguments name."""
    add_task_command(app, "pretrain", panel, summary, arguments, PretrainSpec, _EXTRA, _run)


def _run(values: dict[str, Any], extras: dict[str, Any], task_class: Any) -> None:
    if task_class is None:
        raise SslkitError(f"which task? {listing().strip() or 'none is installed'}", "sslkit pretrain TASK --data DIR")
    spec, flags, from_file = task_spec(PretrainSpec, values, extras, task_class)
    from sslkit.engine import pretrain
    from sslkit.engine.launch import process_count
    from sslkit.engine.parallel import process_group

    if extras["dry_run"]:
        several = process_count(spec) > 1  # which reports more than there are; one process is enough to look
        with process_group(spec.device) as world:
            training = pretrain.prepare(spec.model_copy(update={"shard": False}) if several else spec, world)
        _show_settings(training, spec, flags, from_file, task_class, extras)
    else:
        show(pretrain.pretrain(spec), bool(extras["json"]), _lines)


def _lines(result: Any) -> list[str]:
    """Return a line for each field, and for each metric of the pretext question one with its chance level."""
    from sslkit.engine.curves import describe_curves

    values = dataclasses.asdict(result)
    metrics, chance, seconds = (values.pop(name) for name in ("metrics", "chance", "seconds"))
    curves = describe_curves(metrics, chance)
    texts = {name: curves[name].text(value) for name, value in metrics.items()}
    return field_lines({**values, **texts, "time": duration(seconds)})


def _show_settings(
    training: Any, spec: PretrainSpec, flags: dict[str, Any], from_file: dict[str, Any], task_class: Any, extras: dict[str, Any]
) -> None:
    """Print every settled value and its source."""
    resolved = training.settings.spec
    modality = load_modality(task_class.modality).name
    hidden = resolved.tables() | {"options"}
    values = {name: getattr(resolved, name) for name in PretrainSpec.model_fields if name not in hidden}
    for table in accepted_tables(modality):
        values |= dict(getattr(resolved, table))
    requested = {**spec.data_values(), **{name: getattr(spec, name) for name in values if name in PretrainSpec.model_fields}}
    values |= {"out": str(training.out), **resolved.options}
    sources = {}
    for name in values:
        if name in flags:
            sources[name] = "task" if name == "task" else "flag"
        elif name in from_file or any(name in table for table in from_file.values() if isinstance(table, dict)):
            sources[name] = str(extras["spec"])
        elif spec.recipe == "paper" and name in task_class.paper.settings:
            sources[name] = f"authors of {training.name}"
        elif name in task_class.defaults:
            sources[name] = f"default of {training.name}"
        else:
            sources[name] = "default"
        value, _, reason = training.settings.reasons.get(name, "").partition(": ")
        if reason and requested.get(name, "auto") == "auto":
            values[name], sources[name] = value, f"auto, {reason}"
    if extras["json"]:
        print_json({name: {"value": value, "source": sources[name]} for name, value in values.items()})
    if extras["json"] or RANK > 0:
        return
    for name, value in values.items():
        label = "task" if name == "task" else flag_name(name)
        stdout.print(f"{label:<28} {value!s:<24} {sources[name]}", markup=False)
