"""What an evaluation is: one class in one file, and one entry point of `sslkit.evaluations`; it becomes a verb of the CLI.

Its spec may have a second entry point of the same name in `sslkit.options`, in a module that imports no torch; then `--help`
and completion stay fast.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from sslkit.contract.errors import SslkitError, did_you_mean
from sslkit.contract.options import Spec
from sslkit.contract.result import Result, Results

Labels = Literal["none", "class", "number", "several", "token", "map", "boxes", "pair"]


@dataclass(frozen=True)
class Protocol:
    """A named, versioned way to measure: everything that decides the number, by the names of the flags that change it."""

    id: str  # VERB/NAME-vN
    summary: str
    settings: dict[str, Any]
    deterministic: bool = False  # another seed would give the same number, so that repeating it is pointless

    @property
    def verb(self) -> str:
        """Return the command that follows it."""
        return self.id.partition("/")[0]


class Evaluation:
    """Measure what a checkpoint is good for. The class docstring's first line is the verb's summary in `sslkit --help`."""

    verb: ClassVar[str]  # the name of the entry point
    Options: ClassVar[type[Spec]]  # the spec of the verb: each field is a flag
    panel: ClassVar[str] = "Evaluate"  # of `sslkit --help`
    labels: ClassVar[Labels] = "class"
    requires: ClassVar[tuple[str, ...]] = ("pooled",)  # of the encoder
    modalities: ClassVar[tuple[str, ...]] = ()  # rarely limited: empty means any
    protocols: ClassVar[tuple[Protocol, ...]] = ()  # the first is the default
    in_all: ClassVar[bool] = True  # whether `evaluate --protocol all` includes it

    @classmethod
    def find_protocol(cls, name: str) -> Protocol:
        """Return the protocol of an id; raises SslkitError for an unknown one."""
        for protocol in cls.protocols:
            if protocol.id == name:
                return protocol
        raise SslkitError(
            f"{cls.verb} has no protocol {name}",
            did_you_mean(name, [protocol.id for protocol in cls.protocols]),
            flag="protocol",
        )

    def run(self, spec: Any) -> Result | Results:
        """Evaluate and return the result, also added to the run's `results.jsonl`.

        Raises SslkitError for anything missing or unfit. What is fitted never sees a test part, and nothing is chosen on it.
        """
        raise TypeError(f"{type(self).__name__} does not define run()")
