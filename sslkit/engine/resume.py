"""Resuming a run: which settings may change, and the position of its clock."""

from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sslkit.contract.errors import SslkitError, flag_name
from sslkit.contract.task import Clock
from sslkit.engine.run_folder import RESUME, SPEC, read_spec
from sslkit.engine.stepper import Stepper
from sslkit.processes import PLACE
from sslkit.specs.train import TrainSpec

_FREELY_CHANGED = frozenset(
    {"data", "device", "workers", "cache", "cache_limit", "reindex", "checkpoint_every", "resume", "extend_to", "out"}
    | {"health_every", "on_collapse", "online_knn", "profile", "log", "activation_checkpointing", "max_broken", "devices"}
    | {"shard", "scratch"}
)  # on a resume: they change where and how a run continues, not what it computes (data that moved has the same fingerprint)


def continue_hint(command: str, out: Path, device: str, shard: bool = False) -> str:
    """Return what continues an interrupted run; `--devices` is checked before the run's own `--device` is read."""
    where = [] if device == "auto" else ["--device", device]
    devices = ["--devices", str(PLACE.size), *where] if PLACE.launcher == "--devices" else []
    return " ".join(["continue with: sslkit", command, "--resume --out", str(out), *devices, *(["--shard"] if shard else [])])


def recorded_spec(spec: TrainSpec, folder: Path) -> TrainSpec:
    """Return the recorded spec of a run that is resumed, with the values of `spec` that may change between sessions."""
    try:
        recorded = type(spec).model_validate(read_spec(folder))
    except ValidationError as error:
        first = error.errors()[0]
        raise SslkitError(f"{folder} has a {SPEC} of another kind: {first['loc']}: {first['msg']}", flag="resume") from error
    return recorded.model_copy(update={name: getattr(spec, name) for name in spec.model_fields_set & _FREELY_CHANGED})


def merge_recorded(spec: TrainSpec, folder: Path) -> TrainSpec:
    """Return `recorded_spec`; raises SslkitError if the user set other values."""
    recorded = recorded_spec(spec, folder)
    differing = []
    stored_data = recorded.data_values()
    for name, value in spec.data_values().items():
        if value != stored_data.get(name, "auto") and not spec.is_rule(name):
            differing.append(f"{flag_name(name)} {value} (the run has {stored_data.get(name, 'auto')})")
    # What `--micro-batch auto` became may be too much after all: until the first checkpoint nothing depends on it.
    fitted = set() if (folder / RESUME).exists() else {"micro_batch"}
    for name in spec.model_fields_set - _FREELY_CHANGED - spec.tables() - fitted:
        value, stored = getattr(spec, name), getattr(recorded, name)
        if name in ("options", "encoder_option"):  # of which the run may have more
            differing += [
                f"{flag_name(key) if name == 'options' else f'--encoder-option {key} ='} {option} "
                f"(the run has {stored.get(key)})"
                for key, option in value.items()
                if option != stored.get(key)
            ]
        elif value not in (stored, "auto"):
            differing.append(f"{'task' if name == 'task' else flag_name(name)} {value} (the run has {stored})")
    if differing:
        longer = any(line.startswith(("--epochs", "--steps", "--minutes")) for line in differing)
        raise SslkitError(
            f"{folder} was started with other values: {', '.join(sorted(differing))}",
            "--extend-to EPOCHS continues a finished run" if longer else "leave them out",
            flag="resume",
        )
    return recorded.model_copy(update={name: getattr(spec, name) for name in spec.model_fields_set & fitted})


def load_state(
    stepper: Stepper, state: dict[str, Any], out: Path, flag: str = "resume", hint: str = "did its code change?"
) -> None:
    """Load the state saved in a run folder into a stepper; raises SslkitError if it belongs to another task."""
    try:
        stepper.load_state(state)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:  # what torch raises for a state of another shape
        lines = str(error).splitlines()
        reason = lines[min(1, len(lines) - 1)].strip()  # torch's first line is a title
        raise SslkitError(f"the state in {out / RESUME} does not fit the task: {reason}", hint, flag=flag) from error


def resume_clock(spec: TrainSpec, steps_per_epoch: int, state: dict[str, Any] | None, out: Path) -> Clock:
    """Return the clock of a run; raises SslkitError if `--extend-to` does not start at the end of a finished run."""
    if spec.extend_to is not None:
        if state is None:
            raise SslkitError(f"{out} holds no finished run", flag="extend_to")
        end = spec.extend_to * steps_per_epoch
        if state["step"] < state["steps"] and state["steps"] != end:
            raise SslkitError(f"the run in {out} is not finished", "finish it with --resume first", flag="extend_to")
        if state["step"] == state["steps"] and end < state["steps"]:
            raise SslkitError(
                f"{spec.extend_to} epochs are {end} steps, and the run has taken {state['step']}",
                "use more epochs",
                flag="extend_to",
            )
    if spec.steps is not None:
        return Clock(steps=spec.steps)
    if spec.minutes is not None:
        return Clock(steps=10**9)  # until the steps are measured
    assert isinstance(spec.epochs, int)
    return Clock(steps=spec.epochs * steps_per_epoch)
