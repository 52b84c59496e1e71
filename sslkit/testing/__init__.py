"""The conformance suite: checks that a task keeps the promises of the contract, for ours and third-party tasks.

from sslkit.testing import check_task

def test_contract():
    assert not [verdict for verdict in check_task("rotation") if not verdict.passed]
"""

import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch

from sslkit.contract.task import PretextTask
from sslkit.tasks.load import load_task
from sslkit.testing.bench import TASK_ERRORS, Bench, ContractViolationError
from sslkit.testing.full import FULL, check_ranks
from sslkit.testing.quick import QUICK
from sslkit.testing.ranks import Ranks

__all__ = ["SLOWER", "Ranks", "Verdict", "check_task"]


RANKS = "two processes learn exactly like one"
SLOWER = (*FULL, RANKS)  # promises that only the full check looks at


@dataclass(frozen=True)
class Verdict:
    """Whether a task keeps one promise, and if not, how it breaks it."""

    promise: str
    passed: bool
    detail: str = ""


def check_task(task: str | type[PretextTask], full: bool = False, ranks: Ranks | None = None) -> list[Verdict]:
    """Check a task (an installed name, a .py file or a class) and return a verdict for each promise.

    The quick checks take seconds on the CPU; `full` adds exact micro-batches, exact processes, compilation and resuming.
    Its two processes are started for this call, unless `ranks` is a pair that serves many calls.
    """
    task_class = load_task(task) if isinstance(task, str) else task
    with Bench(task_class) as bench:
        verdicts = [_judge(promise, check, bench) for promise, check in (QUICK | FULL if full else QUICK).items()]
        if full:
            with nullcontext(ranks) if ranks else Ranks() as pair:
                verdicts.append(_judge(RANKS, lambda bench: check_ranks(bench, pair, task), bench))
    return verdicts


def _judge(promise: str, check: Callable[[Bench], None], bench: Bench) -> Verdict:
    try:
        with _single_thread():
            check(bench)
    except ContractViolationError as violation:
        return Verdict(promise, False, str(violation))
    except TASK_ERRORS as error:
        where = _line_of_task(error, bench.task_class)
        return Verdict(promise, False, f"{type(error).__name__}: {str(error).partition(chr(10))[0]}{where}")
    return Verdict(promise, True)


def _line_of_task(error: BaseException, task_class: type[PretextTask]) -> str:
    """Return the last line of the task's own file that an error came through, in parentheses; nothing if there is none."""
    file = getattr(sys.modules.get(task_class.__module__), "__file__", None)
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f" ({Path(str(file)).name}:{lines[-1]})" if lines else ""


@contextmanager
def _single_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the tensors are tiny
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.set_num_threads(threads)
