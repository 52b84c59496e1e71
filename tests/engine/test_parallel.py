"""Several processes: the first writes, all agree, a dead one ends the job; BatchNorm over all of them."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from sslkit import SslkitError
from sslkit.engine.parallel import ALONE, GatheredBatch, World, process_group
from sslkit.engine.precision import choose_machine
from sslkit.testing import Ranks
from tests.run_files import RUN_FILES


def torchrun(*arguments: object, wait: bool = True, script: Path | None = None, restarts: int = 0) -> Any:
    port = 20_000 + os.getpid() % 20_000  # test processes run side by side
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", str(port), "--max-restarts", str(restarts)]
    command += [str(script)] if script else ["-m", "sslkit", *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not wait:
        return process
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def arguments(digits: Path, out: Path, *more: object, task: str = "simclr") -> list[object]:
    settings = "--encoder resnet_micro --encoder-option width=8 --size 16 --batch-size 16 --workers 0 --device cpu"
    return ["pretrain", task, "--data", digits, "--out", out, *settings.split(), *more]


def test_two_processes_make_one_run(digits: Path, tmp_path: Path) -> None:
    code, out, err = torchrun(*arguments(digits, tmp_path / "run", "--epochs", 2, "--json"))
    assert code == 0, err
    assert json.loads(out)["steps"] == 6  # one object, by one process
    assert err.count("simclr on 48 images") == 1 and "processes" in err
    files = {path.name for path in (tmp_path / "run").iterdir()}
    assert files == RUN_FILES
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(6))
    again, _, err = torchrun(*arguments(digits, tmp_path / "run", "--epochs", 2))
    assert again != 0 and "holds a run" in err


@pytest.mark.slow
def test_a_dead_process_ends_the_job_with_a_word(digits: Path, tmp_path: Path) -> None:
    job = torchrun(*arguments(digits, tmp_path / "run", "--steps", 100_000, "--checkpoint-every", 5), wait=False)
    resume = tmp_path / "run" / "resume.pt"
    until(lambda: resume.exists())
    second = next(process for process in children(job.pid) if b"RANK=1" in environment(process))
    os.kill(second, signal.SIGKILL)
    _, err = job.communicate(timeout=120)
    assert job.returncode != 0
    assert "lost another process of this job" in err and "--resume" in err
    assert torch.load(resume, weights_only=True)["step"] > 0


@pytest.mark.slow
def test_torchrun_restarts_a_job_whose_process_was_killed(digits: Path, tmp_path: Path) -> None:
    file = tmp_path / "dies.py"
    file.write_text(
        "import os, signal\nfrom sslkit_plugins.image.contrastive.simclr import SimCLR\n\n\nclass Dies(SimCLR):\n"
        "    def after_step(self, remembered):\n"
        "        if self.clock.step == 7 and os.environ['RANK'] + os.environ['TORCHELASTIC_RESTART_COUNT'] == '10':\n"
        "            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    flags = ["--steps", 12, "--checkpoint-every", 3, "--resume"]
    code, _, err = torchrun(*arguments(digits, tmp_path / "run", *flags, task=str(file)), restarts=1)
    assert code == 0 and "resuming after step 6 of 12" in err, err
    code, _, err = torchrun(*arguments(digits, tmp_path / "straight", *flags[:-1]))
    assert code == 0, err
    resumed, straight = (torch.load(tmp_path / name / "resume.pt", weights_only=True) for name in ("run", "straight"))
    assert all(torch.equal(value, resumed["task"][name]) for name, value in straight["task"].items())


@pytest.mark.slow
def test_a_stopped_job_resumes_to_the_same_bits(digits: Path, tmp_path: Path) -> None:
    steps = ["--steps", 150, "--checkpoint-every", 5]
    # moco's teacher reads BatchNorm's statistics, of which every process has its own.
    job = torchrun(*arguments(digits, tmp_path / "run", *steps, task="moco"), wait=False)
    until(lambda: (tmp_path / "run" / "resume.pt").exists())
    job.send_signal(signal.SIGTERM)  # torchrun hands it on to both
    job.communicate(timeout=120)
    step = torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["step"]
    assert 0 < step < 150
    code, _, err = torchrun("pretrain", "moco", "--resume", "--out", tmp_path / "run", "--device", "cpu")
    assert code == 0 and f"resuming after step {step} of 150" in err, err
    code, _, err = torchrun(*arguments(digits, tmp_path / "straight", *steps, task="moco"))
    assert code == 0, err
    resumed, straight = (torch.load(tmp_path / name / "resume.pt", weights_only=True) for name in ("run", "straight"))
    assert resumed["step"] == straight["step"] == 150
    assert all(torch.equal(value, resumed["task"][name]) for name, value in straight["task"].items())


@pytest.mark.slow
def test_a_sharded_run_resumes_in_one_process(digits: Path, tmp_path: Path, sslkit: Any) -> None:
    """Checkpoints, health checks and previews of weights that no process has as a whole."""
    flags = ["--epochs", 2, "--shard", "--health-every", 2, "--checkpoint-every", 2]
    code, _, err = torchrun(*arguments(digits, tmp_path / "run", *flags, task="byol"))
    assert code == 0 and "each process keeps 1/2 of the encoder's weights" in err, err
    again = sslkit("pretrain", "byol", "--resume", "--out", tmp_path / "run", "--device", "cpu", "--extend-to", 3)
    assert again.code == 0 and "1 instead of 2" in again.err, again.err
    assert torch.load(tmp_path / "run" / "resume.pt", weights_only=True)["step"] == 9
    evaluated = sslkit("embed", "--ckpt", tmp_path / "run" / "model.safetensors", "--data", digits, "--out", tmp_path / "x.npz")
    assert evaluated.code == 0, evaluated.err


def until(happened: Any) -> None:
    started_at = time.monotonic()
    while not happened():
        assert time.monotonic() - started_at < 120
        time.sleep(0.1)


def children(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=True)
    return [int(line) for line in listed.stdout.split()]


def environment(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


@pytest.mark.slow
def test_bad_input_is_reported_by_each(digits: Path, tmp_path: Path) -> None:
    code, _, err = torchrun(*arguments(digits, tmp_path / "run", "--batch-size", "15"))
    assert code != 0 and "error: --batch-size: 15 does not divide among 2 processes (give a multiple of 2)" in err
    assert not (tmp_path / "run").exists()
    code, _, err = torchrun("knn", "--ckpt", "nowhere")
    assert code != 0 and "only pretrain and finetune share their work" in err


@pytest.mark.slow
def test_fine_tuning_shares_its_work(digits: Path, tmp_path: Path) -> None:
    settings = ["--encoder", "vit_micro", "--size", "16", "--batch-size", "8", "--epochs", "1", "--seeds", "2", "--ema", "0.9"]
    code, out, err = torchrun(
        "finetune",
        "--data",
        str(digits),
        *settings,
        "--device",
        "cpu",
        "--workers",
        "0",
        "--out",
        str(tmp_path / "run"),
        "--json",
    )
    assert code == 0, err
    (row,) = json.loads(out)["rows"]
    headline = row["metrics"][0]
    assert (row["fits"][0]["n_train"], headline["n"], headline["deviation"] is None) == (48, 12, False)


def test_shares_are_contiguous_and_whole() -> None:
    rows = list(range(11))
    assert [rows[World(rank, 3).share(11)] for rank in range(3)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10]]
    assert rows[ALONE.share(11)] == rows
    assert [rows[:2][World(rank, 3).share(2)] for rank in range(3)] == [[0], [1], []]


def test_alone_everything_is_itself() -> None:
    rows = torch.rand(3, 2)
    assert ALONE.gather(rows) is rows and ALONE.total(rows) is rows and ALONE.gather_lists([1]) == [1]
    batch = GatheredBatch({"image": rows, "names": "x"}, ALONE)
    assert batch["image"] is rows and dict(batch)["names"] == "x" and len(batch) == 2


def test_an_incomplete_environment_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SslkitError, match=r"WORLD_SIZE is 2 and RANK.*start the job with torchrun"), process_group():
        pass


def test_batchnorm_over_processes_is_on_by_request() -> None:
    assert choose_machine("cpu", sync_batchnorm="on", world=World(0, 2)).sync_batchnorm
    assert not choose_machine("cpu", world=World(0, 2)).sync_batchnorm
    with pytest.raises(SslkitError, match="cannot be shared by 2 processes"):
        choose_machine("cuda:1", world=World(0, 2))


@pytest.mark.slow
def test_processes_that_disagree_do_not_start(digits: Path, tmp_path: Path) -> None:
    """Each process has a cache, and so a view of the data, of its own here: one of them sees another file."""
    script = tmp_path / "start.py"
    script.write_text(
        f"""
import os, shutil, sys
from sslkit.cli.app import main
data = {str(tmp_path)!r} + "/data" + os.environ["RANK"]
shutil.copytree({str(digits)!r} + "/train", data)
if os.environ["RANK"] == "1":
    os.remove(data + "/digit 0/10.png")
main(["pretrain", "rotation", "--data", data, "--out", {str(tmp_path / "run")!r}, "--batch-size", "16", "--workers", "0"])
""",
        encoding="utf-8",
    )
    code, _, err = torchrun(script=script)
    assert code != 0 and "the processes disagree about data, settings or checkpoint" in err, err
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_features_of_two_processes() -> None:
    with Ranks() as ranks:
        first, second = ranks.run("features_in_order", "rotation")
    assert torch.equal(first, second) and len(first) == 24
    from sslkit.tasks.load import load_task
    from sslkit.testing.bench import Bench

    with Bench(load_task("rotation")) as bench:
        alone = bench.features_in_order()
    assert torch.allclose(first, alone, atol=1e-5)
