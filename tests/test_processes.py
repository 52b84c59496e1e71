"""Places of processes by the variables of torchrun, SLURM and `--devices`."""

import json
from pathlib import Path

import pytest

from sslkit import processes
from sslkit.processes import Place, find_place, first_host

STEP = {
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "1",
    "SLURM_NTASKS": "8",
    "SLURM_TASKS_PER_NODE": "4(x2)",
    "SLURM_NODELIST": "gpu[03-04]",
}


def without(*names: str) -> dict[str, str]:
    return {name: value for name, value in STEP.items() if name not in names}


def test_without_variables_a_process_is_alone() -> None:
    assert find_place({}) == Place()


def test_torchrun_comes_before_slurm() -> None:
    torchrun = {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    assert find_place({**STEP, **torchrun}) == Place(1, 2, 1, 2, "torchrun")
    assert find_place({"WORLD_SIZE": "1", "RANK": "3"}) == Place(launcher="torchrun")


def test_a_task_of_srun_has_a_place() -> None:
    port = 10_000 + 8 * 4711 % 20_000
    assert find_place(STEP) == Place(5, 8, 1, 4, "srun", f"tcp://gpu03:{port}?rank=5&world_size=8")
    step = {**STEP, "SLURM_STEP_NODELIST": "gpu9", "SLURM_STEP_NUM_TASKS": "2", "MASTER_PORT": "99"}
    assert find_place(step).rendezvous == "tcp://gpu9:99?rank=5&world_size=2"


@pytest.mark.parametrize(
    "environ",
    [
        without("SLURM_STEP_ID"),  # salloc, or the script of sbatch
        without("SLURM_PROCID"),
        {**STEP, "SLURM_STEP_ID": "4294967290"},  # the interactive step of salloc
        {**STEP, "SLURM_STEP_ID": "4294967291"},  # the batch step
        {**STEP, "SLURM_STEP_NUM_TASKS": "1"},  # srun --ntasks=1 in an allocation of eight
    ],
)
def test_a_shell_in_an_allocation_is_alone(environ: dict[str, str]) -> None:
    assert find_place(environ) == Place()


@pytest.mark.parametrize(
    ("tasks", "node", "local_size"), [("4(x2),3", "1", 4), ("4(x2),3", "2", 3), ("2", "0", 2), ("3,5", "1", 5)]
)
def test_tasks_on_this_node(tasks: str, node: str, local_size: int) -> None:
    assert find_place({**STEP, "SLURM_TASKS_PER_NODE": tasks, "SLURM_NODEID": node}).local_size == local_size


def test_tasks_per_node_as_requested() -> None:
    assert find_place({**without("SLURM_TASKS_PER_NODE"), "SLURM_NTASKS_PER_NODE": "6"}).local_size == 6


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("a,b", "a"),
        ("node[03-07,9]", "node03"),
        ("node[9,03-07],gpu[1-2]", "node9"),
        ("rack[1-2]node[05-08]-ib,login", "rack1node05-ib"),
        ("n1.example.org,n[2-3].example.org", "n1.example.org"),
    ],
)
def test_first_host(nodes: str, first: str) -> None:
    assert first_host(nodes) == first


def test_results_and_errors_are_left_in_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(processes.FOLDER, raising=False)
    assert not processes.report_result({"steps": 3}) and not processes.report_error("no", 2)
    monkeypatch.setenv(processes.FOLDER, str(tmp_path))
    assert processes.report_result({"steps": 3}) and processes.report_error("no", 2)
    assert json.loads((tmp_path / processes.RESULT).read_text()) == {"steps": 3}
    (error,) = tmp_path.glob(processes.ERRORS)
    assert json.loads(error.read_text()) == {"rank": 0, "message": "no", "code": 2}
