"""Commands as a user would type them: the one that repeats a recorded run, and settings as flags."""

import shlex
from typing import Any

from sslkit import registry
from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.options import flat_fields
from sslkit.specs.train import FinetuneSpec, PretrainSpec
from sslkit.tasks.load import load_task, split_names

_LENGTHS = ("steps", "minutes", "epochs")


def run_command(spec: dict[str, Any], steps: int | None = None) -> str:
    """Return the command that repeats a run with this recorded spec, for another number of `steps` if there is one.

    It has every setting that is not the default.
    """
    command, model = ("pretrain", PretrainSpec) if "task" in spec else ("finetune", FinetuneSpec)
    modalities = registry.data_options()
    tables = {name: table for name, table in spec.items() if name in modalities and isinstance(table, dict)}
    settings = {name: value for name, value in spec.items() if name not in tables}
    settings |= {name: value for table in tables.values() for name, value in table.items()}
    defaults, task_defaults = _defaults(model), dict[str, Any]()
    if command == "pretrain":
        of_run, task_defaults = _task_defaults(str(spec["task"]))
        defaults |= of_run
    if steps is not None:
        settings = {name: value for name, value in settings.items() if name not in _LENGTHS} | {"steps": steps}
    left_out = {"task", "options", "resume", "extend_to", *(["minutes", "epochs"] if settings.get("steps") else [])}
    words = ["sslkit", command, *([str(spec["task"])] if command == "pretrain" else [])]
    for name, value in settings.items():
        if name not in left_out and value is not None and value != defaults.get(name):
            words += flag_words(name, value)
    options = spec.get("options")
    for name, value in options.items() if isinstance(options, dict) else ():
        if value is not None and value != task_defaults.get(name):
            words += flag_words(name.replace("__", "."), value)
    return shlex.join(words)


def flag_words(name: str, value: Any) -> list[str]:
    """Return a setting as words of a command."""
    if isinstance(value, bool):
        return [flag_name(name) if value else f"--no-{flag_name(name)[2:]}"]
    if isinstance(value, dict):
        return [word for key, entry in value.items() for word in (flag_name(name), f"{key}={entry}")]
    if isinstance(value, list):
        return [word for entry in value for word in (flag_name(name), str(entry))]
    return [flag_name(name), str(value)]


def _defaults(model: Any) -> dict[str, Any]:
    return {name: field.get_default(call_default_factory=True) for name, field in flat_fields(model).items()}


def _task_defaults(task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the defaults of a task for run settings and for its options; none of a file, which is not run to look."""
    if any(name.endswith(".py") for name in split_names(task)):
        return {}, {}
    try:
        task_class = load_task(task)
    except SslkitError:  # its package is gone: every option is written
        return {}, {}
    options = {name: field.get_default(call_default_factory=True) for name, field in task_class.Options.model_fields.items()}
    return task_class.defaults, options
