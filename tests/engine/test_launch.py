"""`--devices`: several processes by one command, with the output, errors and exit codes of a single one; and by srun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import FinetuneSpec, PretrainSpec, RunFailedError, SslkitError, finetune, pretrain
from sslkit.engine.launch import process_count
from tests.run_files import RUN_FILES

SMALL = ["--encoder", "resnet_micro", "--encoder-option", "width=8", "--size", "16", "--batch-size", "16", "--workers", "0"]
SMALL += ["--device", "cpu"]


def start(*arguments: object, **variables: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-P", "-m", "sslkit", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **variables})


def run(*arguments: object) -> tuple[int, str, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def until(happened: Callable[[], bool]) -> None:
    started_at = time.monotonic()
    while not happened():
        assert time.monotonic() - started_at < 120
        time.sleep(0.05)


def step_of(folder: Path) -> int:
    return int(torch.load(folder / "resume.pt", weights_only=True)["step"])


@pytest.mark.slow
def test_two_processes_make_one_run(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sslkit").mkdir()  # such as a checkout: not the package
    monkeypatch.chdir(tmp_path)
    flags = ["--data", digits, "--out", tmp_path / "run", *SMALL, "--devices", 2, "--steps", 4, "--json"]
    code, out, err = run("pretrain", "simclr", *flags)
    assert code == 0, err
    assert json.loads(out)["steps"] == 4
    assert err.count("simclr on 48 images") == 1 and "processes      2" in err
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == RUN_FILES
    assert "devices" not in json.loads((tmp_path / "run" / "spec.json").read_text())
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["processes"] == 2


@pytest.mark.slow
def test_an_error_is_one_line(digits: Path, tmp_path: Path) -> None:
    flags = ["--data", digits, "--out", tmp_path / "run", *SMALL, "--devices", 2]
    code, out, err = run("pretrain", "simclr", *flags, "--batch-size", 15)
    line = "error: --batch-size: 15 does not divide among 2 processes (give a multiple of 2)"
    assert (code, out) == (2, "") and [text for text in err.splitlines() if "error" in text.lower()] == [line]
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("raise ZeroDivisionError('no divisor')", "error: ZeroDivisionError in {file}, line 6: no divisor (traceback in"),
        ("raise RunFailedError('no more')", "error: no more"),
        ("os.kill(os.getpid(), 9)", "error: process 1 was killed by SIGKILL (--resume continues from the last checkpoint)"),
        ("os._exit(7)", "error: process 1 ended with exit code 7 (--resume continues from the last checkpoint)"),
    ],
)
def test_a_process_that_fails_is_reported_once(statement: str, message: str, digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "fails.py"
    file.write_text(
        "import os\nfrom sslkit import RunFailedError\nfrom sslkit_plugins.image.contrastive.simclr import SimCLR\n"
        f"class Fails(SimCLR):\n    def after_step(self, remembered): os.environ['RANK'] == '1' and self.fail()\n"
        f"    def fail(self): {statement}\n"
    )
    code, _, err = run("pretrain", file, "--data", digits, "--out", tmp_path / "run", *SMALL, "--devices", 2, "--steps", 4)
    assert code == 1 and err.splitlines()[-1].startswith(message.format(file=file)), err
    assert err.count("error: ") == 1 and "lost another process" not in err


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_all_after_a_checkpoint(number: signal.Signals, expected: int, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["--data", digits, "--out", folder, *SMALL, "--devices", 2, "--checkpoint-every", 5]
    job = start("pretrain", "simclr", *flags, "--steps", 100_000)
    until((folder / "resume.pt").exists)
    job.send_signal(number)
    _, err = job.communicate(timeout=120)
    assert job.returncode == expected, err
    step = step_of(folder)
    hint = f"continue with: sslkit pretrain simclr --resume --out {folder} --devices 2 --device cpu"
    assert err.splitlines()[-1] == f"stopped after step {step} of 100000 ({hint})"
    code, _, err = run("pretrain", "simclr", "--resume", "--out", folder, "--device", "cpu", "--devices", 2, "--steps", 50)
    assert code == 2 and "--steps 50 (the run has 100000)" in err


@pytest.mark.slow
def test_processes_stop_when_their_launcher_is_killed(digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["--data", digits, "--out", folder, *SMALL, "--devices", 2, "--checkpoint-every", 100_000]
    job = start("pretrain", "simclr", *flags, "--steps", 100_000)
    until(lambda: (folder / "metrics.jsonl").exists() and bool((folder / "metrics.jsonl").read_text()))
    job.kill()
    job.communicate(timeout=120)  # which returns when the last process has closed its output
    assert 0 < step_of(folder) < 100_000


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_sigusr1_writes_a_checkpoint_and_the_run_goes_on(devices: int, digits: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    flags = ["--data", digits, "--out", folder, *SMALL, "--devices", devices, "--checkpoint-every", 10_000]
    job = start("pretrain", "simclr", *flags, "--steps", 2000)
    until(lambda: (folder / "metrics.jsonl").exists() and bool((folder / "metrics.jsonl").read_text()))
    job.send_signal(signal.SIGUSR1)
    resume = folder / "resume.pt"
    until(resume.exists)
    first, written_at = step_of(folder), resume.stat().st_mtime_ns
    job.send_signal(signal.SIGUSR1)
    until(lambda: resume.stat().st_mtime_ns > written_at)
    second = step_of(folder)  # the same, if the signal came between two epochs
    assert job.poll() is None
    job.send_signal(signal.SIGTERM)
    _, err = job.communicate(timeout=120)
    assert job.returncode == 143 and 0 < first <= second <= step_of(folder) < 2000
    assert f"checkpoint after step {first}\ncheckpoint after step {second}\n" in err


@pytest.mark.slow
def test_python_has_the_results_and_errors(digits: Path, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"data": str(digits), "size": 16, "workers": 0, "device": "cpu", "devices": 2}
    few: dict[str, Any] = {**settings, "batch_size": 16, "steps": 3}
    assert pretrain(PretrainSpec(task="rotation", out=str(tmp_path / "a"), **few)).steps == 3
    with pytest.raises(SslkitError, match="already holds a run"):
        pretrain(PretrainSpec(task="rotation", out=str(tmp_path / "a"), **few))
    result = finetune(FinetuneSpec(encoder="vit_micro", epochs=1, batch_size=8, out=str(tmp_path / "b"), **settings))
    assert result.verb == "finetune" and result.rows[0].fits[0].n_train == 48
    with pytest.raises(RunFailedError, match="diverged"):
        pretrain(PretrainSpec(task="simclr", lr=1e30, optimizer="sgd", out=str(tmp_path / "c"), **few))


def test_more_processes_than_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for gpus, text in ((2, "2"), (0, "none")):
        monkeypatch.setattr(torch.cuda, "device_count", lambda gpus=gpus: gpus)
        message = f"--devices: 4 processes need a GPU each, and this machine has {text} .*--device cpu"
        with pytest.raises(SslkitError, match=message):
            process_count(PretrainSpec(task="simclr", devices=4))
        assert process_count(PretrainSpec(task="simclr", devices="auto")) == max(1, gpus)
        assert process_count(PretrainSpec(task="simclr", devices=4, device="cpu")) == 4
        assert process_count(PretrainSpec(task="simclr", devices="auto", device="cpu")) == 1
        assert process_count(PretrainSpec(task="simclr")) == process_count(PretrainSpec(task="simclr", devices=1)) == 1


def test_inside_a_launcher_it_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert process_count(PretrainSpec(task="simclr")) == 1
    with pytest.raises(SslkitError, match=r"--devices: torchrun decides .*, and started 2 \(leave --devices out\)"):
        process_count(PretrainSpec(task="simclr", devices="auto"))
    monkeypatch.delenv("WORLD_SIZE")
    for name, value in {"STEP_ID": "0", "PROCID": "1", "NTASKS": "2", "NODELIST": "n1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    with pytest.raises(SslkitError, match="--devices: srun decides the number of processes, and started 2"):
        process_count(PretrainSpec(task="simclr", devices=2))


def test_dry_runs_and_plans_are_of_one_process(digits: Path, sslkit: Callable[..., Any]) -> None:
    flags = ["simclr", "--data", digits, *SMALL, "--devices", "2"]
    assert "--devices                    2                        flag" in sslkit("pretrain", *flags, "--dry-run").out
    refused = sslkit("plan", *flags)
    assert refused.code == 2 and "--devices: plan measures one process (leave it out)" in refused.err


@pytest.mark.slow
def test_tasks_of_srun_make_one_run(digits: Path, tmp_path: Path) -> None:
    """As srun would start them: two processes with the variables of a step."""
    shared = {"JOB_ID": str(os.getpid()), "STEP_ID": "0", "NTASKS": "2", "NODELIST": "localhost", "TASKS_PER_NODE": "2"}
    flags = ["--data", digits, "--out", tmp_path / "run", *SMALL, "--steps", 4, "--json"]
    tasks = []
    for rank in range(2):
        variables = {**shared, "PROCID": str(rank), "LOCALID": str(rank), "NODEID": "0"}
        names = {f"SLURM_{name}": value for name, value in variables.items()}
        tasks.append(start("pretrain", "simclr", *flags, **names))
    (out, err), (silent, _) = (task.communicate(timeout=240) for task in tasks)
    assert [task.returncode for task in tasks] == [0, 0], err
    assert json.loads(out)["steps"] == 4 and "processes      2" in err and silent == ""
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["processes"] == 2
