"""Specs of commands for plugin authors."""

from pydantic import Field

from sslkit.contract.options import Spec


class NewTaskSpec(Spec):
    """Hold what `sslkit new-task` is told."""

    name: str = Field(description="What the task is called: small letters, digits and _.")
    out: str | None = Field(default=None, description="Folder of the package; default: sslkit-NAME.")
