"""`sslkit plan TASK`."""

from typing import Any

import typer

from sslkit.cli.arguments import JSON, SPEC
from sslkit.cli.output import show
from sslkit.cli.task_command import add_task_command, listing, task_spec
from sslkit.console import duration
from sslkit.contract.errors import SslkitError
from sslkit.specs.train import PretrainSpec


def add(app: typer.Typer, panel: str, summary: str, arguments: list[str]) -> None:
    """Add the command to the application, with the options of the task that the arguments name."""
    add_task_command(app, "plan", panel, summary, arguments, PretrainSpec, {"spec": SPEC, "json": JSON}, _run)


def _run(values: dict[str, Any], extras: dict[str, Any], task_class: Any) -> None:
    if task_class is None:
        raise SslkitError(f"which task? {listing().strip() or 'none is installed'}", "sslkit plan TASK --data DIR")
    spec, _, _ = task_spec(PretrainSpec, values, extras, task_class)
    import sslkit

    show(sslkit.plan(spec), bool(extras["json"]), _lines)


def _lines(result: Any) -> list[str]:
    largest, memory = result.largest_batch, result.memory
    limit = "" if result.memory_limit is None else f" of {result.memory_limit / 1e9:.1f} GB"
    lines = {
        "speed": f"{result.samples_per_second:,.0f} samples/s",
        "time": f"{duration(result.seconds)} for {result.steps:,} steps",
        "first epoch": duration(result.first_epoch_seconds),
        "memory": "not measured" if memory is None else f"{memory / 1e9:.1f} GB{limit}",
        "largest batch": "not measured" if largest is None else f"about {largest:,} without --micro-batch",
        "disk": f"{result.cache_bytes / 1e6:,.0f} MB cache, {result.run_bytes / 1e6:,.0f} MB checkpoints "
        "(twice that while they are written)",
    }
    return [f"{name:<15}{text}" for name, text in lines.items()]
