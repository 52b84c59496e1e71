"""Settings that a task brings along: its defaults, for small data, and those of its authors (`--recipe paper`)."""

from dataclasses import dataclass
from typing import Any

from sslkit.contract.errors import SslkitError
from sslkit.contract.options import flat_fields
from sslkit.contract.task import PretextTask
from sslkit.specs.train import PretrainSpec

_LENGTHS = {"epochs", "steps", "minutes"}  # of a run, of which one is set


@dataclass(frozen=True)
class SettingRow:
    """One setting of a task as text: its default, and the authors' value, blank if they state none."""

    name: str
    default: str
    paper: str


def with_task_settings(spec: PretrainSpec, task_class: type[PretextTask]) -> PretrainSpec:
    """Return the spec with the settings of its recipe where the user set nothing, among them options of the task.

    Raises SslkitError for `--recipe paper` of a task that has none, pydantic's ValidationError for settings that are none.
    """
    settings = dict(task_class.defaults)
    if spec.recipe == "paper":
        if task_class.paper is None:
            raise SslkitError(f"the authors' settings of {spec.task} are not recorded", "leave it out", flag="recipe")
        settings |= task_class.paper.settings
    options = {name: settings.pop(name) for name in list(settings) if name in task_class.Options.model_fields}
    chosen = {*spec.model_fields_set, *spec.data_values()}
    if chosen & _LENGTHS:
        chosen |= _LENGTHS
    if "encoder" in chosen:
        chosen.add("encoder_option")  # of another encoder
    values = {name: getattr(spec, name) for name in spec.model_fields_set} | {"options": {**options, **spec.options}}
    return PretrainSpec.model_validate({**{name: value for name, value in settings.items() if name not in chosen}, **values})


def setting_rows(task_class: type[PretextTask]) -> list[SettingRow]:
    """Return the run settings that a task or its authors choose, then the options that its authors choose."""
    paper = {} if task_class.paper is None else dict(task_class.paper.settings)
    run, options = flat_fields(PretrainSpec), task_class.Options.model_fields
    defaults = {name: field.default for name, field in (run | options).items()} | task_class.defaults
    names = [name for name in run if name in task_class.defaults or name in paper]
    names += [name for name in options if name in paper]
    return [SettingRow(name, _text(defaults[name]), _text(paper[name]) if name in paper else "") for name in names]


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "on", False: "off", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={inner}" for key, inner in value.items()) or "none"
    return str(value)
