"""What the command line shows of a task, kept in the cache so that `pretrain TASK --help` and completion need no torch.

It is valid as long as the files of the task's class and of its options' bases are the same by modification time and size.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from sslkit import registry
from sslkit.cli.options import FlagText, flag_texts
from sslkit.contract.errors import SslkitError
from sslkit.data.cache import cache_folder, claim_cache
from sslkit.files import write_atomically

_LONGEST = 2**20  # bytes of a stored schema


@dataclass(frozen=True)
class TaskSchema:
    """Describe a task: plain values only."""

    summary: str
    modality: str
    defaults: Mapping[str, Any]
    options: list[FlagText]


def describe(task_class: Any) -> TaskSchema:
    """Return the schema of a task's class."""
    options = flag_texts(task_class.Options.model_fields, {})
    return TaskSchema(task_class.__doc__ or "", task_class.modality, dict(task_class.defaults), options)


def stored(task: str) -> TaskSchema | None:
    """Return the schema that the cache holds of a task, None if there is none or a file has changed."""
    try:
        with open(_file(task), "rb") as stream:
            values = json.loads(stream.read(_LONGEST))
        if not all(_stamp(Path(path)) == stamp for path, stamp in values["files"].items()):
            return None
        options = [FlagText(**flag) for flag in values["options"]]
        return TaskSchema(values["summary"], values["modality"], values["defaults"], options)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # not there, or damaged
        return None


def store(task: str, task_class: Any, schema: TaskSchema) -> None:
    """Keep the schema of a task; a cache that can't be written is none of help's business."""
    children = getattr(task_class, "children_of", {})
    classes = {
        base for task_type in (task_class, *children.values()) for base in (*task_type.__mro__, *task_type.Options.__mro__)
    }
    files = {str(Path(file).resolve()) for base in classes if (file := _source(base)) is not None}
    values = {**asdict(schema), "files": {file: _stamp(Path(file)) for file in sorted(files)}}
    try:
        claim_cache()
        with write_atomically(_file(task)) as stream:
            stream.write(json.dumps(values).encode())
    except (SslkitError, OSError, TypeError):  # no cache; TypeError: a default that JSON does not have
        return


def _source(base: type) -> str | None:
    """Return the file of a class of ours or of a plugin; those of the standard library and torch do not change."""
    module = sys.modules.get(base.__module__)
    file = getattr(module, "__file__", None)
    return file if file is not None and base.__module__.partition(".")[0] not in ("builtins", "torch", "pydantic") else None


def _file(task: str) -> Path:
    try:
        origin = registry.find(registry.TASKS, task).point.value
    except SslkitError:  # a file, or several tasks
        origin = str(Path(task).resolve())
    return cache_folder() / "schemas" / f"{blake2b(f'{task} {origin}'.encode(), digest_size=12).hexdigest()}.json"


def _stamp(file: Path) -> list[int]:
    status = file.stat()
    return [status.st_mtime_ns, status.st_size]
