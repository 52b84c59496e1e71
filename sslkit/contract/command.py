"""A verb of the command line that writes files rather than numbers: an entry point of `sslkit.commands`.

Its spec may have a second entry point of the same name in `sslkit.options`, in a module that imports no torch; then `--help`
and completion stay fast. A verb that returns numbers is an `Evaluation`.
"""

from collections.abc import Sequence
from typing import Any, ClassVar

from sslkit.contract.options import Spec
from sslkit.contract.result import Result


class Command:
    """Do one thing with a checkpoint, a run or data. The class docstring's first line is the verb's summary."""

    Options: ClassVar[type[Spec]]  # each field is a flag
    panel: ClassVar[str] = "Use"  # of `sslkit --help`
    argument: ClassVar[str | tuple[str, ...] | None] = None  # the field, or fields, given without a flag
    extended: ClassVar[bool] = False  # listed by `sslkit --all` only

    def run(self, spec: Any) -> Any:
        """Do it and return a dataclass, which `--json` prints; raises SslkitError for anything that can't be done."""
        raise TypeError(f"{type(self).__name__} does not define run()")

    def lines(self, result: Any) -> Sequence[str | Result] | None:
        """Return what people read of a result: lines, and evaluations as tables; None: a line for each of its fields."""
        return None
