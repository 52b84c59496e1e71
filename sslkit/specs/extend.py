"""Specs of commands for plugin authors."""

from pydantic import Field

from sslkit.contract.options import Spec


class NewTaskSpec(Spec):
    """Settings of `sslkit new-task`."""

    name: str = Field(description="Name of the task: lower-case letters, digits and _.")
    out: str | None = Field(default=None, description="Folder of the package; default: sslkit-NAME.")


class NewEvaluationSpec(Spec):
    """Settings of `sslkit new-evaluation`."""

    name: str = Field(description="Name of the evaluation: lower-case letters, digits and _.")
    out: str | None = Field(default=None, description="Folder of the package; default: sslkit-NAME.")
