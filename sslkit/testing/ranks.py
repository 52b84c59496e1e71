"""A pair of processes in one group, which check any number of tasks."""

import tempfile
from datetime import timedelta
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from sslkit.contract.task import PretextTask
from sslkit.engine.parallel import World
from sslkit.tasks.load import load_task
from sslkit.testing.bench import TASK_ERRORS, Bench, ContractViolationError

_SIZE = 2


_REPORTED: tuple[type[Exception], ...] = (ContractViolationError, *TASK_ERRORS)


_PATIENCE = 60  # seconds that one process waits for the other


class Ranks:
    """Start two processes with gloo between them, and call methods of a bench in both."""

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory()
        context = multiprocessing.get_context("spawn")  # a fork would inherit OpenMP's threads
        pipes = [context.Pipe() for _ in range(_SIZE)]
        self._ends = [ours for ours, _ in pipes]
        self._processes = [
            context.Process(target=_serve, args=(rank, f"file://{self._folder.name}/store", theirs), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self._processes, pipes, strict=True):
            process.start()
            theirs.close()  # so that the death of the process is noticed
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for end in self._ends:
            end.close()
        for process in self._processes:
            process.join(_PATIENCE)
            process.kill()
        self._folder.cleanup()

    def run(self, method: str, task: str | type[PretextTask], **arguments: Any) -> list[Any]:
        """Call a method of `Bench` in each process, with its `world`, and return the results.

        Raises ContractViolationError with the error of a process.
        """
        answers = []
        try:
            for end in self._ends:
                end.send((method, task, arguments))
            for end in self._ends:
                answers.append(end.recv())
        except (EOFError, OSError) as error:
            raise ContractViolationError(f"process {len(answers)} ended unexpectedly") from error
        for rank, answer in enumerate(answers):
            if isinstance(answer, str):
                raise ContractViolationError(f"process {rank}: {answer}")
        return answers


def _serve(rank: int, store: str, end: Connection) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=_SIZE, timeout=timedelta(seconds=_PATIENCE))
    world = World(rank, _SIZE, rank)
    try:
        while True:
            method, task, arguments = end.recv()
            task_class = load_task(task) if isinstance(task, str) else task
            try:
                with Bench(task_class) as bench:
                    answer: Any = getattr(bench, method)(world=world, **arguments)
            except _REPORTED as error:  # sent to the process that asked
                answer = f"{type(error).__name__}: {error}"
            end.send(answer)
    except EOFError:  # the other end is closed
        dist.destroy_process_group()
