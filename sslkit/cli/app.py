"""The command line: one module per command. Nothing here imports torch before a command needs it."""

import os
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any

import typer

from sslkit import registry
from sslkit.console import PROCESSES, RANK, close_output, replace_unprintable, say, start_command, stderr
from sslkit.contract.errors import RunInterruptedError, SslkitError, did_you_mean
from sslkit.processes import ignore_checkpoint_signal, report_error, stop_without_launcher

# Every mistake in using the command line derives from this class, which Typer exports only through its subclass.
_UsageError: Any = typer.BadParameter.__mro__[2]


# Commands that need a task's options, or tell about the installation: each has a module beside this one.
BUILT_IN = {
    "pretrain": ("Train", "Learn from unlabeled data with one pretext task, or several: simclr+rotation."),
    "plan": ("Train", "Measure for a minute what a pretraining run will take: time, memory, disk, largest batch."),
    "preview": ("Look", "Show what a task makes of samples before training, or what a checkpoint predicts."),
    "tasks": ("About", "List the installed pretext tasks, or the settings of one."),
    "encoders": ("About", "List installed encoders, and how to name those of timm, torchvision and your own."),
    "protocols": ("About", "List the named evaluation protocols and their settings."),
    "cache": ("About", "Show what the cache holds, or clear it."),
    "env": ("About", "Print versions, devices and plugins, for a bug report."),
    "check": ("Extend", "Check that a task keeps the promises of the contract; exit code 1 if it does not."),
}
_PANELS = ("Train", "Evaluate", "Use", "Look", "About", "Extend")
_EXTENDED = {
    "adapt",
    "anomaly",
    "plan",
    "retrieval",
    "zeroshot",
    "perplexity",
    "pseudo-perplexity",
    "cloze",
    "correspond",
    "fewshot",
    "frames",
    "ladder",
    "pairs",
    "prompt",
    "robustness",
    "segment",
    "tag",
    "word-vectors",
    "protocols",
    "cache",
    "env",
}  # of ours: listed by --all only
_HELP = "Self-supervised learning: pretrain on unlabeled data, evaluate, export."


@dataclass(frozen=True)
class Verb:
    """One command as `sslkit --help` lists it; `entry` is None for one that is built in."""

    name: str
    panel: str
    summary: str
    entry: registry.Entry | None = None
    extended: bool = False  # listed by --all only


def verbs() -> list[Verb]:
    """Return all commands by panel: those built in, evaluations, and commands of installed packages."""
    listed = [Verb(name, panel, summary, None, name in _EXTENDED) for name, (panel, summary) in BUILT_IN.items()]
    for group, panel in ((registry.EVALUATIONS, "Evaluate"), (registry.COMMANDS, "Use")):
        for entry in registry.entries(group):
            values = entry.constants
            extended = bool(values.get("extended", False)) or (entry.package == "sslkit" and entry.name in _EXTENDED)
            listed.append(Verb(entry.name, str(values.get("panel", panel)), entry.summary, entry, extended))
    ranks = {panel: rank for rank, panel in enumerate(_PANELS)}
    names = [verb.name for verb in listed]
    twice = next((verb for verb in listed if names.count(verb.name) > 1), None)
    if twice is not None:
        packages = [verb.entry.package if verb.entry else "sslkit" for verb in listed if verb.name == twice.name]
        raise SslkitError(f"command {twice.name} is offered by {' and '.join(packages)}", "uninstall one of them")
    return sorted(listed, key=lambda verb: ranks.get(verb.panel, len(ranks)))


def main(arguments: list[str] | None = None) -> None:
    """Run `sslkit` with the given arguments (default: those of the process) and exit.

    A reader that leaves early, as `| head -1` does, is no error.
    """
    replace_unprintable()
    try:
        try:
            _run(arguments)
        finally:
            sys.stdout.flush()  # here, not at the end of the process, where nobody could catch it
    except BrokenPipeError:
        close_output(sys.stdout)
        sys.exit(0)
    except SystemExit as ending:
        if isinstance(ending.__context__, BrokenPipeError):  # Typer prints help by a console of its own, which exits with 1
            sys.exit(0)
        raise


def _run(arguments: list[str] | None) -> None:
    ignore_checkpoint_signal()
    start_command()
    stop_without_launcher()
    completing = "_SSLKIT_COMPLETE" in os.environ  # the shell asks what may come next
    arguments = _typed() if completing else sys.argv[1:] if arguments is None else arguments
    if arguments in ([], ["--all"]):
        arguments = [*arguments, "--help"]
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
        if not report_error(str(stopped), stopped.exit_code):
            say(str(stopped))
        sys.exit(stopped.exit_code)
    except SslkitError as error:
        if completing:
            sys.exit(0)  # nothing fits; a message would end up in the line that is being typed
        _fail(str(error), error.exit_code)
    except _UsageError as error:
        _fail(_usage_text(error), 2)
    except typer.Abort:
        _fail("interrupted", 130)
    except KeyboardInterrupt:
        _fail("interrupted", 130)
    else:
        if code == 130:  # Typer's, for Ctrl-C; older versions raise Abort
            _fail("interrupted", 130)
        sys.exit(code if isinstance(code, int) else 0)


def build_app(arguments: list[str]) -> typer.Typer:
    """Return the Typer application; the arguments name the task whose options `pretrain` has."""
    app = typer.Typer(
        help=_HELP, no_args_is_help=True, rich_markup_mode="rich", add_completion=True, pretty_exceptions_enable=False
    )

    @app.callback(invoke_without_command=True, help=_HELP, epilog="--traceback shows where an unexpected error comes from.")
    def top(
        version: bool = typer.Option(False, "--version", help="Print the version and exit."),
        everything: bool = typer.Option(False, "--all", help="List all commands and exit."),
    ) -> None:
        if version:
            from importlib.metadata import version as installed

            print(f"sslkit {installed('sslkit')}")
            raise typer.Exit

    completing = "_SSLKIT_COMPLETE" in os.environ
    called = next((argument for argument in arguments if not argument.startswith("-")), None)
    for verb in verbs():
        if verb.name != called and not (completing and verb.name in arguments):
            hidden = verb.extended and not completing and "--all" not in arguments
            app.command(verb.name, help=verb.summary, rich_help_panel=verb.panel, hidden=hidden)(_listed_only)
        elif verb.entry is not None:
            from sslkit.cli.arguments import add_entry  # not at the top: `sslkit --help` needs no pydantic

            add_entry(app, verb.entry, verb.panel)
        else:
            module = import_module(f"sslkit.cli.{verb.name.replace('-', '_')}")
            module.add(app, verb.panel, verb.summary, arguments)
    return app


def _typed() -> list[str]:
    """Return the whole words after `sslkit` in the line that a shell wants completed."""
    line = os.environ.get("COMP_WORDS") or os.environ.get("_TYPER_COMPLETE_ARGS") or ""  # of bash; of zsh and fish
    words = line.split()
    return (words if line.endswith((" ", "\n")) else words[:-1])[1:]


def _listed_only() -> None:
    """Stand for a command in the list: its module, and all it imports, is needed by nobody who did not call it."""


def _fail(message: str, code: int) -> None:
    if report_error(message, code):
        sys.exit(code)
    for line in message.splitlines() or [""]:
        stderr.print(f"process {RANK}: error: " if RANK else "error: ", style="bold red", end="")
        stderr.print(line, markup=False)
    sys.exit(code)


def _usage_text(error: Any) -> str:
    """Return what is wrong with the command line; of an unknown option, where the known ones are listed."""
    option, context = getattr(error, "option_name", None), error.ctx
    if option is None or context is None or type(error).__name__ != "NoSuchOption":
        message = str(error.format_message())
        return f"{message} (quote values with spaces)" if "unexpected extra argument" in message else message
    known = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
    hints = [hint for hint in (did_you_mean(option, known, listing=[]), "--help lists them all") if hint]
    return f"{option} is not an option of {context.command_path} ({' '.join(hints)})"


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> Any:
    """Report an unexpected exception in one line and keep the traceback in a log."""
    import tempfile  # neither is for `sslkit --help`
    import traceback

    with tempfile.NamedTemporaryFile("w", prefix="sslkit-", suffix=".log", delete=False, encoding="utf-8") as log:
        log.write(f"sslkit {' '.join(sys.argv[1:])}\n")
        traceback.print_exception(kind, error, trace, file=log)
    first = str(error).partition("\n")[0]
    ours = (str(Path(__file__).parent.parent), str(Path(__file__).parent.parent.parent / "plugins"))
    others = [
        frame
        for frame in traceback.extract_tb(trace)
        if not frame.filename.startswith((*ours, sys.prefix, sys.base_prefix, "<"))
    ]
    raised, advice = f"unexpected {kind.__name__}", "please report it"
    if others:  # a plugin's own file
        raised = f"{kind.__name__} in {others[-1].filename}, line {others[-1].lineno}"
        advice = "`sslkit check FILE` tests a task"
    message = f"{raised}: {first} (traceback in {log.name}; {advice})"
    if isinstance(error, OSError) and error.strerror and not others:  # a full disk, a folder without permission: not ours
        place = "" if error.filename is None else f"{error.filename}: "
        message = f"{place}{error.strerror} (traceback in {log.name})"
    if not report_error(message, 1):
        stderr.print(message, markup=False)
