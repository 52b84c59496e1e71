"""The command line: one module per command. Nothing here imports torch before a command needs it."""

import os
import sys
from importlib import import_module
from types import TracebackType
from typing import Any

import typer

from sslkit.console import PROCESSES, RANK, say, stderr
from sslkit.contract.errors import RunInterruptedError, SslkitError

# Every mistake in using the command line derives from this class, which Typer exports only through its subclass.
_UsageError: Any = typer.BadParameter.__mro__[2]


COMMANDS = {
    "Train": {
        "pretrain": "Learn from unlabeled data with one pretext task, or several: simclr+rotation.",
        "plan": "Measure for a minute what a run of pretrain would take: time, memory, disk, the largest batch.",
        "compare": "Train several tasks for the same time, evaluate them, write a report: which suits the data?",
        "finetune": "Train encoder and classifier on labels, from a checkpoint or from scratch, and test once.",
        "export": "Write the encoder for other programs, and prove that they compute the same.",
        "demo": "Pretrain, evaluate and export on handwritten digits that ship with the installation, in two minutes.",
    },
    "Evaluate": {
        "knn": "Classify by the nearest training features of a frozen encoder.",
        "probe": "Fit a linear classifier on the features of a frozen encoder.",
        "retrieval": "Rank training images by closeness to test images: mean average precision.",
        "zeroshot": "Classify images by the names of classes, or match images and captions, with a checkpoint of clip.",
        "word-vectors": "Evaluate word vectors on similarity and analogy benchmarks.",
        "evaluate": "Evaluate by several protocols, fine-tuning too if asked: one table.",
        "embed": "Write features, paths and labels to a file.",
        "predict": "Write class and probability of each image, by a fine-tuned checkpoint.",
    },
    "Look": {
        "preview": "Draw what a task makes of images before any training, or what a checkpoint says of them.",
        "report": "Write a page about runs: curves, pictures, results; one HTML file to show.",
        "neighbors": "Show the images that are nearest to images, or list the words nearest to words.",
        "map": "Draw the features of images in the plane, by t-SNE or PCA.",
        "tasks": "List the installed pretext tasks and the packages they come from.",
        "encoders": "List encoders: installed ones, and how to name timm's, torchvision's and your own.",
        "protocols": "List the named protocols, and what exactly each of them does.",
        "cache": "Show what the cache of indexes and decoded images holds, or clear it.",
        "env": "Print versions, devices and plugins, for a bug report.",
    },
    "Extend": {
        "new-task": "Write a package with a task of your own, its test and its entry point.",
        "check": "Check that a task keeps the promises of the contract; exit code 1 if it does not.",
    },
}


_HELP = "Self-supervised learning: pretrain on unlabeled data, evaluate, export."


def main(arguments: list[str] | None = None) -> None:
    """Run `sslkit` with the given arguments (default: those of the process) and exit."""
    completing = "_SSLKIT_COMPLETE" in os.environ  # the shell asks what may come next
    arguments = _typed() if completing else sys.argv[1:] if arguments is None else arguments
    if "--traceback" in arguments:
        arguments = [argument for argument in arguments if argument != "--traceback"]
    else:
        sys.excepthook = _one_line
    try:
        # Not the application itself: calling that would put Typer's own hook in the place of ours.
        command = typer.main.get_command(build_app(arguments))
        if PROCESSES > 1 and not {"pretrain", "finetune", "--help"} & set(arguments):
            raise SslkitError(f"{PROCESSES} processes: only pretrain and finetune share their work", "start one process")
        code = command(arguments, standalone_mode=False, prog_name="sslkit")
    except RunInterruptedError as stopped:  # as asked: no error
        say(str(stopped))
        sys.exit(stopped.exit_code)
    except SslkitError as error:
        if completing:
            sys.exit(0)  # nothing fits; a message would end up in the line that is being typed
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

    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for panel, commands in COMMANDS.items():
        for name, summary in commands.items():
            if name == called or "_SSLKIT_COMPLETE" in os.environ:
                import_module(f"sslkit.cli.{name.replace('-', '_')}").add(app, panel, summary, arguments)
            else:
                app.command(name, help=summary, rich_help_panel=panel)(_listed_only)
    return app


def _typed() -> list[str]:
    """Return the whole words after `sslkit` in the line that a shell wants completed."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""  # of bash; of zsh and fish
    words = line.split()
    return (words if line.endswith((" ", "\n")) else words[:-1])[1:]


def _listed_only() -> None:
    """Stand for a command in the list: its module, and all it imports, is needed by nobody who did not call it."""


def _fail(message: str, code: int) -> None:
    for line in message.splitlines() or [""]:
        stderr.print(f"process {RANK}: error: " if RANK else "error: ", style="bold red", end="")
        stderr.print(line, markup=False)
    sys.exit(code)


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    """Report an unexpected exception in one line and keep the traceback in a log."""
    import tempfile  # neither is for `sslkit --help`
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="sslkit-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"sslkit {' '.join(sys.argv[1:])}{os.linesep}")
        traceback.print_exception(kind, error, trace, file=log)
    first = str(error).partition("\n")[0]
    stderr.print(f"unexpected {kind.__name__}: {first} (traceback in {log.name}; please report it)", markup=False)
