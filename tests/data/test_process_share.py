"""Cores and memory that a process may use."""

import os
from pathlib import Path

import pytest

from sslkit.data import process_share
from sslkit.data.process_share import available_cores, available_memory, free_memory

CORES = 16


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of control groups of a machine with 16 cores, on which the process has none yet."""
    monkeypatch.setattr(process_share, "_GROUPS", tmp_path)
    monkeypatch.setattr(process_share, "_MINE", tmp_path / "mine")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(CORES)), raising=False)
    for name in ("WORLD_SIZE", "SLURM_STEP_ID", "SLURM_CPUS_PER_TASK"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_without_limits_all_cores_that_the_process_may_run_on(groups: Path) -> None:
    assert available_cores() == CORES and (available_memory() or 0) > 10**8


@pytest.mark.parametrize(
    ("quota", "cores"), [("max 100000", CORES), ("400000 100000", 4), ("50000 100000", 1), ("250000 100000", 3)]
)
def test_a_container_is_limited_by_its_root_group(groups: Path, quota: str, cores: int) -> None:
    write(groups / "mine", "0::/\n")
    write(groups / "cpu.max", quota)
    assert available_cores() == cores


def test_the_tightest_group_above_counts(groups: Path) -> None:
    write(groups / "mine", "0::/slice/job/step\n")
    write(groups / "slice/job/cpu.max", "200000 100000")
    write(groups / "slice/job/step/cpu.max", "max 100000")
    write(groups / "slice/memory.max", "1000000")
    assert available_cores() == 2 and available_memory() == 1_000_000


def test_groups_of_the_first_version(groups: Path) -> None:
    write(groups / "mine", "5:memory:/docker/a\n4:cpu,cpuacct:/docker/a\n")
    write(groups / "cpu/docker/a/cpu.cfs_quota_us", "800000")
    write(groups / "cpu/docker/a/cpu.cfs_period_us", "100000")
    write(groups / "cpu/cpu.cfs_quota_us", "-1")
    write(groups / "cpu/cpu.cfs_period_us", "100000")
    write(groups / "memory/docker/a/memory.limit_in_bytes", "2000000")
    assert available_cores() == 8 and available_memory() == 2_000_000


def test_processes_of_a_job_share_the_cores(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "64")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert available_cores() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "64")
    assert available_cores() == 1


def test_a_task_of_srun_has_the_cores_it_was_promised(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    step = {"STEP_ID": "0", "STEP_NUM_TASKS": "4", "STEP_NODELIST": "node1", "PROCID": "1", "STEP_TASKS_PER_NODE": "4"}
    for name, value in step.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    assert available_cores() == 4
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert available_cores() == 6


def test_free_memory_is_that_of_the_tightest_group(groups: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_share, "_MACHINE", groups / "meminfo")
    write(groups / "meminfo", "MemTotal:  9000 kB\nMemAvailable:  5 kB\n")
    assert free_memory() == 5120
    write(groups / "mine", "0::/job/step\n4:memory:/old\n")
    write(groups / "job/memory.max", "3000")
    write(groups / "job/memory.current", "1000")
    write(groups / "job/memory.stat", "anon 500\ninactive_file 400\n")
    write(groups / "job/step/memory.max", "max")
    write(groups / "job/step/memory.current", "900")
    assert free_memory() == 2400
    write(groups / "memory/old/memory.limit_in_bytes", "2000")
    write(groups / "memory/old/memory.usage_in_bytes", "700")
    write(groups / "memory/old/memory.stat", "total_inactive_file 100\n")
    assert free_memory() == 1400
    monkeypatch.setattr(process_share, "_MACHINE", groups / "nothing")
    assert free_memory() is None
