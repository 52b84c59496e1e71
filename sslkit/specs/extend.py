"""Specs of commands for plugin authors."""

from pydantic import Field

from sslkit.contract.options import Spec


class NewTaskSpec(Spec):
    """Options of `new-task`."""

    name: str = Field(description="Name of the task: lowercase letters, digits and _.")
    out: str | None = Field(default=None, description="Folder of the package; default: sslkit-NAME.")


class NewEvaluationSpec(Spec):
    """Options of `new-evaluation`."""

    name: str = Field(description="Name of the evaluation: lowercase letters, digits and _.")
    out: str | None = Field(default=None, description="Folder of the package; default: sslkit-NAME.")
