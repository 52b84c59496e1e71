"""The command line: one module per command. Nothing here imports torch before a command needs it."""

import os
import sys
import tempfile
import traceback
from types import TracebackType
from typing import Any

import typer

from sslkit.cli import cache, demo, encoders, export, finetune, knn, pretrain, probe, tasks
from sslkit.console import stderr
from sslkit.errors import SslkitError

# Every mistake in using the command line derives from this class, which Typer exports only through its subclass.
_UsageError: Any = typer.BadParameter.__mro__[2]

_HELP = "Self-supervised learning: pretrain on unlabelled data, evaluate, export."


def main(arguments: list[str] | None = None) -> None:
    """Run `sslkit` with the given arguments (default: those of the process) and exit."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--traceback" in arguments:
        arguments = [argument for argument in arguments if argument != "--traceback"]
    else:
        sys.excepthook = _one_line
    try:
        # Not the application itself: calling that would put Typer's own hook in the place of ours.
        command = typer.main.get_command(build_app(arguments))
        code = command(arguments, standalone_mode=False, prog_name="sslkit")
    except SslkitError as error:
        _fail(str(error), error.exit_code)
    except _UsageError as error:
        _fail(error.format_message(), 2)
    except typer.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def build_app(arguments: list[str]) -> typer.Typer:
    """Return the Typer application; the arguments tell which task's options `pretrain` has."""
    app = typer.Typer(
        help=_HELP, no_args_is_help=True, rich_markup_mode="rich", add_completion=True, pretty_exceptions_enable=False
    )

    @app.callback(invoke_without_command=True, help=_HELP, epilog="--traceback shows where an unexpected error comes from.")
    def top(version: bool = typer.Option(False, "--version", help="Print the version and exit.")) -> None:
        if version:
            from importlib.metadata import version as installed

            print(f"sslkit {installed('sslkit')}")
            raise typer.Exit

    for panel, modules in {
        "Train": (pretrain, finetune, demo),
        "Evaluate": (knn, probe),
        "Take away": (export,),
        "Look around": (tasks, encoders, cache),
    }.items():
        for module in modules:
            module.add(app, panel, arguments)
    return app


def _fail(message: str, code: int) -> None:
    lines = message.splitlines() or [""]
    for line in lines:
        stderr.print("error: ", style="bold red", end="")
        stderr.print(line, markup=False)
    sys.exit(code)


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    """Report an unexpected exception in one line and keep the traceback in a log."""
    with tempfile.NamedTemporaryFile("w", prefix="sslkit-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"sslkit {' '.join(sys.argv[1:])}{os.linesep}")
        traceback.print_exception(kind, error, trace, file=log)
    first = str(error).partition("\n")[0]
    stderr.print(f"unexpected {kind.__name__}: {first} (traceback in {log.name}; please report it)", markup=False)
