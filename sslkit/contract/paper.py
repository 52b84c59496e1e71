"""The settings of a task's authors, at their own scale."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Paper:
    """What `--recipe paper` sets where nobody set something else."""

    source: str  # the authors' file, or the section of the paper, that the values are from
    settings: Mapping[str, Any]  # run settings, data options and options of the task, by the name of their field
    unsupported: tuple[str, ...] = ()  # what the authors do and no setting here can express
