"""The errors a user can cause or be told about: one line each, and an exit code."""

from collections.abc import Iterator
from contextlib import contextmanager


class SslkitError(Exception):
    """Tell the user what was given, what was expected and which flag to change (exit code 2: before the first step)."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint

    def __str__(self) -> str:
        message = str(self.args[0])
        return f"{message} ({self.hint})" if self.hint else message


class RunFailedError(SslkitError):
    """Tell the user why a run that had started could not go on (exit code 1)."""

    exit_code = 1


class RunInterruptedError(SslkitError):
    """Say that a signal ended the run after a checkpoint was written (exit code 128 + signal)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


@contextmanager
def naming(flag: str, instead_of: str) -> Iterator[None]:
    """Let errors name the flag that the user gave where one piece serves several: `--test: ...` instead of `--data: ...`."""
    try:
        yield
    except SslkitError as error:
        error.args = (str(error.args[0]).replace(instead_of, flag, 1),)
        raise


def did_you_mean(name: str, known: list[str], listing: list[str] | None = None) -> str:
    """Return `did you mean X?` for the nearest known name, or the names (or the shorter `listing`) when none is near."""
    from difflib import get_close_matches

    near = get_close_matches(name, known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]}?"
    shown = sorted(known if listing is None else listing)
    if shown:
        return f"known: {', '.join(shown)}"
    return "" if known else "none is installed"
