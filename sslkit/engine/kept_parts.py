"""What a checkpoint keeps of a pretext task beside the encoder (`--keep-parts head`), and the task that it is put back into."""

from typing import Any

from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.contract.task import DataInfo, PretextTask
from sslkit.engine.checkpoint import Checkpoint
from sslkit.tasks.joint import WITHIN
from sslkit.tasks.load import load_task, split_names

PREFIX = "pretext"  # of names in a checkpoint: pretext.rotation.head.weight
_ENCODER = "encoder"


def kept_parts(task: PretextTask, name: str, chosen: list[str]) -> dict[str, dict[str, Any]]:
    """Return the state of the parts chosen by name, by `pretext.TASK`; of a joint task, of each task that has such a part.

    Raises SslkitError for a part that no task has.
    """
    states = {prefix or name: _state_beside_encoder(inner) for prefix, inner, _ in _tasks(task)}
    known = sorted({_part_of(key) for state in states.values() for key in state})
    for part in chosen:
        if part not in known:
            raise SslkitError(f"{name} has no part {part}", did_you_mean(part, known) if known else "", flag="keep_parts")
    kept = {
        f"{PREFIX}.{inner}": {key: value for key, value in state.items() if _part_of(key) in chosen}
        for inner, state in states.items()
    }
    return {key: state for key, state in kept.items() if state}


def kept_tasks(checkpoint: Checkpoint) -> list[str]:
    """Return the names of the tasks of which a checkpoint keeps parts."""
    names = [key.split(".")[1] for key in checkpoint.tensors if key.startswith(f"{PREFIX}.")]
    return list(dict.fromkeys(names))


def read_pretext_task(checkpoint: Checkpoint, encoder: Encoder, name: str, samples: int) -> PretextTask:
    """Return a task of the checkpoint around an encoder, with the parts that were kept, in eval mode.

    Raises SslkitError if parts are missing, or options that no checkpoint records.
    """
    options: dict[str, Any] = dict(checkpoint.metadata["spec"].get("options", {}))
    if len(split_names(checkpoint.metadata["task"])) > 1:
        prefix = name + WITHIN
        options = {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}
    task_class = load_task(name)
    data = DataInfo(samples, checkpoint.size, encoder.in_channels, checkpoint.evaluated_as)
    try:
        task = task_class(task_class.Options.model_validate(options), encoder, data)
    except (ValueError, SslkitError) as error:
        raise SslkitError(f"{name} cannot be built from {checkpoint.path}: {error}", flag="ckpt") from error
    kept = checkpoint.part(f"{PREFIX}.{name}")
    missing = sorted({_part_of(key) for key in _state_beside_encoder(task).keys() - kept.keys()})
    if missing:
        flags = " ".join(f"--keep-parts {part}" for part in missing)
        raise SslkitError(f"{checkpoint.path} keeps no {', '.join(missing)} of {name}", f"pretrain with {flags}", flag="ckpt")
    task.load_state_dict({**{f"{_ENCODER}.{key}": value for key, value in encoder.state_dict().items()}, **kept})
    return task.eval()


def _tasks(task: PretextTask) -> list[tuple[str, PretextTask, float]]:
    """Return the tasks with parts of their own: those inside a joint task, or the task itself."""
    inner = [entry for entry in task.parts() if entry[1] is not task]
    return inner or [("", task, 1.0)]


def _state_beside_encoder(task: PretextTask) -> dict[str, Tensor]:
    return {key: value for key, value in task.state_dict().items() if _part_of(key) != _ENCODER}


def _part_of(key: str) -> str:
    return key.split(".")[0]
