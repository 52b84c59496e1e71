"""The errors a user can cause or meet: one line each, and an exit code.

SslkitError             bad input, before the first step (exit code 2)
├── RunFailedError      the run failed after it started (exit code 1)
└── RunInterruptedError a signal ended the run after a checkpoint (exit code 128 + signal)
UnreadableSampleError   one sample can't be read; reported, never ends a run by itself
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager


def flag_name(field: str) -> str:
    """Return the flag of a field: `batch_size` is `--batch-size`, `simclr__width` is `--simclr.width`, `TEXT` an argument."""
    return field if field.isupper() else "--" + field.replace("__", ".").replace("_", "-")


class SslkitError(Exception):
    """Report what was given, what was expected and which flag to change.

    Printed as `--flag: message (hint)`. `flag` is the field the user set, as Python spells it, or several.
    """

    exit_code = 2

    def __init__(self, message: str, hint: str = "", *, flag: str | tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint
        self.flags = (flag,) if isinstance(flag, str) else flag

    def __str__(self) -> str:
        message = f"{' and '.join(map(flag_name, self.flags))}: {self.message}" if self.flags else self.message
        return f"{message} ({self.hint})" if self.hint else message


class RunFailedError(SslkitError):
    """Report why a run that had started could not go on (exit code 1)."""

    exit_code = 1


class RunInterruptedError(SslkitError):
    """Report that a signal ended the run after a checkpoint was written (exit code 128 + signal)."""

    def __init__(self, message: str, signal_number: int, hint: str = "") -> None:
        super().__init__(message, hint)
        self.exit_code = 128 + signal_number


class UnreadableSampleError(Exception):
    """Report why one sample can't be used."""


@contextmanager
def renamed_flags(names: Mapping[str, str]) -> Iterator[None]:
    """Make errors name the flag that the user gave where one function serves several: `--test`, not `--data`."""
    try:
        yield
    except SslkitError as error:
        error.flags = tuple(names.get(flag, flag) for flag in error.flags)
        raise


_LISTED = 60  # names in a message


def did_you_mean(name: str, known: list[str], listing: list[str] | None = None) -> str:
    """Return `did you mean X?` for the nearest known name, or the names (or the shorter `listing`) when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    names = sorted(known if listing is None else listing)
    if len(names) > _LISTED:
        return f"{len(names):,} are known"
    if names:
        return f"known: {', '.join(names)}"
    return "" if known else "none is installed"
