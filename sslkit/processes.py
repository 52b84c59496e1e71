"""The processes of a job, as torchrun, srun or `--devices` describe them in the environment. Nothing here imports torch."""

import json
import os
import re
import signal
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

FOLDER = "SSLKIT_LAUNCH"  # variable with the folder in which the processes of `--devices` leave their result and errors
RESULT, ERRORS = "result.json", "error-*.json"
CHECKPOINT_SIGNAL: signal.Signals | None = getattr(signal, "SIGUSR1", None)  # None: Windows has no such signal
_SHELLS = 0xFFFFFFF0  # ids of SLURM's batch, interactive and extern steps begin here
_FIRST_PORT, _PORTS = 10_000, 20_000  # below those that Linux takes for outgoing connections


@dataclass(frozen=True)
class Place:
    """Place of this process among those of its job."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1  # processes on this machine
    launcher: str = ""  # torchrun, srun or --devices; empty for a process that none of them started
    rendezvous: str = "env://"  # where the processes meet, as torch.distributed spells it


def find_place(environ: Mapping[str, str]) -> Place:
    """Return the place of this process: by torchrun's variables, else by those of a SLURM step, else alone."""
    if "WORLD_SIZE" in environ:
        size = int(environ["WORLD_SIZE"])
        rank, local_rank = (int(environ.get(name, "0")) if size > 1 else 0 for name in ("RANK", "LOCAL_RANK"))
        launcher = "--devices" if FOLDER in environ else "torchrun"
        return Place(rank, size, local_rank, int(environ.get("LOCAL_WORLD_SIZE", "1")), launcher)
    return _find_slurm_place(environ)


def _find_slurm_place(environ: Mapping[str, str]) -> Place:
    """Return the place of a task of `srun`.

    The shells of salloc and sbatch have the numbers of the allocation, SLURM_NTASKS among them, but are alone: they have no
    SLURM_STEP_ID or that of a special step.
    """
    step = environ.get("SLURM_STEP_ID", "")
    size = int(environ.get("SLURM_STEP_NUM_TASKS") or environ.get("SLURM_NTASKS", "1"))
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_NODELIST", "")
    is_task = step.isdecimal() and int(step) < _SHELLS and bool(nodes) and "SLURM_PROCID" in environ
    if not is_task or size == 1:
        return Place()
    rank = int(environ["SLURM_PROCID"])
    address = environ.get("MASTER_ADDR") or first_host(nodes)
    # Eight steps of a job have ports of their own, and so have jobs that follow each other.
    port = environ.get("MASTER_PORT") or _FIRST_PORT + (8 * int(environ.get("SLURM_JOB_ID", "0")) + int(step)) % _PORTS
    return Place(
        rank,
        size,
        int(environ.get("SLURM_LOCALID", "0")),
        _tasks_on_this_node(environ),
        "srun",
        f"tcp://{address}:{port}?rank={rank}&world_size={size}",
    )


def first_host(nodes: str) -> str:
    """Return the first host of a SLURM node list: `node03` of `node[03-07,9],gpu1`."""
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", nodes).partition(",")[0]


def _tasks_on_this_node(environ: Mapping[str, str]) -> int:
    """Return the number of a step's tasks on this node; SLURM writes `4(x2),3` for 4, 4 and 3."""
    text = environ.get("SLURM_STEP_TASKS_PER_NODE") or environ.get("SLURM_TASKS_PER_NODE", "")
    groups = re.findall(r"(\d+)(?:\(x(\d+)\))?", text)
    counts = [int(count) for count, nodes in groups for _ in range(int(nodes or 1))]
    node = int(environ.get("SLURM_NODEID", "0"))
    return counts[node] if node < len(counts) else int(environ.get("SLURM_NTASKS_PER_NODE", "1"))


PLACE = find_place(os.environ)


def ignore_checkpoint_signal() -> None:
    """Ignore SIGUSR1 where there is nothing to save: by default it ends a process."""
    if CHECKPOINT_SIGNAL is not None and threading.current_thread() is threading.main_thread():
        signal.signal(CHECKPOINT_SIGNAL, signal.SIG_IGN)


def stop_without_launcher() -> None:
    """Send SIGTERM to this process once the one of `--devices` that started it is gone, as after `kill -9`.

    Linux could do so by itself, but would at the end of the thread that started it.
    """
    if FOLDER in os.environ:
        threading.Thread(target=_wait_for_the_end_of, args=(os.getppid(),), daemon=True).start()


def _wait_for_the_end_of(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


def report_result(values: object) -> bool:
    """Leave a result to the process of `--devices` that started this one; return False if there is none."""
    return _leave(RESULT, values)


def report_error(message: str, code: int) -> bool:
    """Leave an error and its exit code to the process of `--devices` that started this one; return False if there is none."""
    return _leave(ERRORS.replace("*", str(PLACE.rank)), {"rank": PLACE.rank, "message": message, "code": code})


def _leave(name: str, values: object) -> bool:
    folder = os.environ.get(FOLDER)
    if folder is None:
        return False
    part = Path(folder, f"{name}.part")
    part.write_text(json.dumps(values), encoding="utf-8")
    part.replace(Path(folder, name))
    return True
