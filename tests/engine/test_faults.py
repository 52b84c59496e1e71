"""What goes wrong around a run: one clear line, nothing lost, nothing left behind."""

import inspect
import multiprocessing
import os
import platform
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from sslkit.contract.source import ReadSeed, Source
from sslkit.contract.task import DataInfo
from sslkit.data import loader as loader_module
from sslkit.data.loader import Loader, WorkerFailedError, ordered_batches
from sslkit.files import write_atomically
from sslkit.image.source import ImageSource

Run = Callable[..., Any]

TASK = """
import multiprocessing, os, resource, shutil, signal, torch
from sslkit import PretextTask
class Faulty(PretextTask):
    "Meets a fault in the fourth step."
    def setup(self):
        self.teacher = torch.nn.Linear(1, 1).requires_grad_(False)
    def transform(self, batch):
        image = batch["canvas"]
        if self.clock.step == 3:
            {transform}
        return {{"image": image}}
    def loss(self, output, batch):
        loss = output.square().mean() + 0 * self.teacher.weight.sum()
        if self.clock.step == 3:
            {loss}
        return loss
    def after_step(self, remembered):
        if self.clock.step == 3:
            {after_step}
    def exports(self):
        if self.clock.step == 4:
            {exports}
        return super().exports()
"""


def faulty(folder: Path, **faults: str) -> Path:
    """Write a task that does something bad in its fourth step, or when that is saved."""
    lines = {"transform": "pass", "loss": "pass", "after_step": "pass", "exports": "pass"} | faults
    file = folder / "faulty.py"
    file.write_text(TASK.format(**lines))
    return file


def step_of(run: Path) -> int:
    return int(torch.load(run / "resume.pt", weights_only=True)["step"])


@pytest.mark.parametrize(
    ("faults", "message", "kept"),
    [
        ({"transform": "image[5] = float('nan')"}, "step 4 diverged: image of the transformed batch is not finite", 3),
        ({"loss": "loss = loss / 0"}, "step 4 diverged: loss loss is not finite", 3),
        ({"loss": "output.register_hook(lambda gradient: gradient / 0)"}, "step 4 diverged: gradient of encoder.", 3),
        ({"after_step": "self.teacher.weight.fill_(float('inf'))"}, "teacher.weight is not finite after step 4", 3),
    ],
)
def test_the_tensor_that_is_not_finite_is_named(
    faults: dict[str, str], message: str, kept: int, sslkit: Run, digits: Path, quick: list[str], tmp_path: Path
) -> None:
    arguments = ["--data", digits, *quick, "--steps", 6, "--checkpoint-every", 1, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", faulty(tmp_path, **faults), *arguments)
    assert ran.code == 1 and message in ran.err and "the previous checkpoint is kept" in ran.err
    assert step_of(tmp_path / "run") == kept
    assert all(torch.isfinite(value).all() for value in load_file(tmp_path / "run" / "model.safetensors").values())


@pytest.mark.parametrize(
    ("moment", "fault", "message"),
    [
        ("after_step", "shutil.rmtree({run!r})", "the folder is gone"),
        # Between resume.pt and model.safetensors.
        ("exports", "shutil.rmtree({run!r}, ignore_errors=True)", "the folder is gone"),
        # As a disk that is full: nothing grows beyond a kilobyte.
        ("after_step", "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))", "File too large"),
    ],
)
def test_a_disk_that_fails_during_the_run(
    moment: str, fault: str, message: str, sslkit: Run, digits: Path, quick: list[str], tmp_path: Path
) -> None:
    run, whole = tmp_path / "run", tmp_path / "whole"
    task = faulty(tmp_path, **{moment: fault.format(run=str(run))})
    arguments = [task, "--data", digits, *quick, "--steps", 6, "--checkpoint-every", 2, "--health-every", 0, "--out"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        ran = sslkit("pretrain", *arguments, run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert ran.code == 1
    (error,) = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert f"cannot write to {run}: {message}" in error
    assert not list(tmp_path.rglob("*.tmp"))
    if "rmtree" in fault:
        assert not run.exists()  # half a run in a new folder would be worse
        return
    assert step_of(run) == 2
    faulty(tmp_path)
    assert sslkit("pretrain", *arguments, whole).code == sslkit("pretrain", *arguments, run, "--resume").code == 0
    weights, resumed = (load_file(folder / "model.safetensors") for folder in (whole, run))
    assert all(torch.equal(weights[name], resumed[name]) for name in weights)


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    left = tmp_path / f"resume.pt.{platform.node()}.{dead.pid}.tmp"
    others = tmp_path / f"resume.pt.{platform.node()}.{os.getppid()}.tmp"
    for file in (left, others):
        file.write_bytes(b"half")
    with write_atomically(tmp_path / "resume.pt") as stream:
        stream.write(b"whole")
    assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "resume.pt", others])


class Slow(Source):
    """Read numbers, but never the one that is `stuck`."""

    info = DataInfo(samples=8, size=1, channels=1)
    stuck = -1

    def read(self, rows: NDArray[np.int64], draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        if self.stuck in rows:
            time.sleep(60)
        return {"number": rows.astype(np.float32)}, {}


def test_a_dead_worker_is_reported_at_the_next_batch() -> None:
    source = Slow.__new__(Slow)
    source.stuck = 7
    loader = Loader(source, workers=1, substitute=False)
    before, others = signal.getsignal(signal.SIGCHLD), multiprocessing.active_children()
    arriving = loader(ordered_batches(8, 1))
    next(arriving)
    (worker,) = set(multiprocessing.active_children()) - set(others)
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    assert signal.getsignal(signal.SIGCHLD) == before  # torch's would raise here, in the middle of a step
    with pytest.raises(WorkerFailedError, match=r"--workers: one of 1 died: .*fewer workers"):
        list(arriving)


class Polling(Slow):
    """Poll torch's flag in the worker, whether it has to end, again and again."""

    def read(self, rows: NDArray[np.int64], draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        frame = inspect.currentframe()
        while self.stuck in rows and frame is not None and "done_event" not in frame.f_locals:
            frame = frame.f_back
        assert frame is not None
        while self.stuck in rows and not frame.f_locals["done_event"].is_set():
            pass
        return {"number": rows.astype(np.float32)}, {}


def test_a_worker_that_dies_takes_no_lock_with_it() -> None:
    source = Polling.__new__(Polling)
    source.stuck = 1
    for _ in range(4):
        others = multiprocessing.active_children()
        loader = Loader(source, workers=1, substitute=False)
        arriving = loader(ordered_batches(8, 1))
        next(arriving)
        (worker,) = set(multiprocessing.active_children()) - set(others)
        assert worker.pid is not None
        os.kill(worker.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailedError):
            next(arriving)
        loader.close()


def test_a_hanging_worker_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader_module, "_PATIENCE", 2)
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)  # seconds until torch kills a worker
    source = Slow.__new__(Slow)
    source.stuck = 2
    with closing(Loader(source, workers=1, substitute=False)) as loader:
        arriving = loader(ordered_batches(8, 1))
        assert len([next(arriving), next(arriving)]) == 2
        with pytest.raises(WorkerFailedError, match=r"no batch came in 2 seconds"):
            next(arriving)


def test_a_signal_ends_the_wait_for_a_batch(
    sslkit: Run, digits: Path, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.5)
    read, main = ImageSource.read, os.getpid()

    def read_slowly(self: ImageSource, rows: Any, draw: Any = None) -> Any:
        if os.getpid() != main and 7 in rows:
            time.sleep(60)
        return read(self, rows, draw)

    monkeypatch.setattr(ImageSource, "read", read_slowly)
    timer = threading.Timer(4, lambda: os.kill(main, signal.SIGTERM))
    timer.start()
    started_at = time.monotonic()
    arguments = ["--data", digits, *quick, "--steps", 60, "--workers", 1, "--cache", "off", "--out", tmp_path / "run"]
    ran = sslkit("pretrain", "rotation", *arguments)
    timer.join()
    assert ran.code == 143 and "stopped after step" in ran.err, ran.err
    assert time.monotonic() - started_at < 30  # the worker sleeps for a minute
    assert (tmp_path / "run" / "resume.pt").exists()


def test_shared_memory_that_is_too_small_is_named_before_the_run(
    sslkit: Run, digits: Path, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = shutil.disk_usage(tmp_path)._replace(free=2_000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: free)
    arguments = ["--data", digits, *quick, "--workers", 2, "--cache", "off", "--steps", 2, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", "rotation", *arguments)
    assert ran.code == 2 and "--workers: 2 workers that read 2 samples each need" in ran.err and "use --workers 1" in ran.err
    assert not (tmp_path / "run").exists()


def test_a_run_whose_worker_dies_keeps_its_steps(
    sslkit: Run, digits: Path, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kill = "[os.kill(child.pid, signal.SIGKILL) for child in multiprocessing.active_children()]"
    arguments = ["--data", digits, *quick, "--steps", 60, "--workers", 1, "--cache", "off", "--out", tmp_path / "run"]
    ran = sslkit("pretrain", faulty(tmp_path, after_step=kill), *arguments)
    assert ran.code == 1 and "--workers: one of 1 died: " in ran.err and "--workers 0" in ran.err
    assert step_of(tmp_path / "run") >= 4


def pictures(folder: Path, count: int, broken: int) -> Path:
    folder.mkdir()
    for number in range(count):
        file = folder / f"{number:03}.png"
        if number % (count // broken) == 1:
            file.write_bytes(b"nothing")
        else:
            Image.fromarray(np.full((16, 16, 3), number % 256, dtype=np.uint8)).save(file)
    return folder


def test_too_many_broken_images_stop_a_run_before_it_begins(sslkit: Run, quick: list[str], tmp_path: Path) -> None:
    arguments = ["--data", pictures(tmp_path / "data", 40, 10), *quick, "--steps", 4, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", "rotation", *arguments)
    assert ran.code == 2 and "10 of 40 images cannot be read, more than --max-broken 0.1" in ran.err
    assert ".png: UnidentifiedImageError" in ran.err and not (tmp_path / "run").exists()
    assert sslkit("pretrain", "rotation", *arguments, "--max-broken", 0.3).code == 0
    assert len((tmp_path / "run" / "broken.csv").read_text().splitlines()) == 11


def test_too_many_broken_images_stop_a_run_after_the_first_epoch(sslkit: Run, quick: list[str], tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 320, 40)  # an eighth: too near for the few that are tried before
    arguments = ["--data", data, *quick, "--batch-size", 32, "--epochs", 3, "--out", tmp_path / "run"]
    ran = sslkit("pretrain", "rotation", *arguments)
    assert ran.code == 1 and "40 of 320 images cannot be read" in ran.err and step_of(tmp_path / "run") == 10
    assert sslkit("pretrain", "rotation", "--resume", "--max-broken", 0.2, "--out", tmp_path / "run").code == 0
    assert step_of(tmp_path / "run") == 30


def test_a_pipe_is_no_image(sslkit: Run, quick: list[str], tmp_path: Path) -> None:
    data = pictures(tmp_path / "data", 40, 1)
    os.mkfifo(data / "pipe.png")
    ran = sslkit("pretrain", "rotation", "--data", data, *quick, "--steps", 2, "--out", tmp_path / "run")
    assert ran.code == 0, ran.err
    assert "pipe.png,is no file" in (tmp_path / "run" / "broken.csv").read_text()


def test_a_single_image_is_not_enough(sslkit: Run, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "data" / "only.png")
    ran = sslkit("pretrain", "rotation", "--data", tmp_path / "data", "--steps", 2, "--out", tmp_path / "run")
    assert ran.code == 2 and "contains only 1 image; at least 2 are needed" in ran.err


def test_constant_images_give_numbers_or_a_short_error(sslkit: Run, quick: list[str], tmp_path: Path) -> None:
    for number in range(40):
        (tmp_path / "data" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), "gray").save(tmp_path / "data" / "ab"[number % 2] / f"{number}.png")
    data, checkpoint = tmp_path / "data", tmp_path / "run" / "model.safetensors"
    assert sslkit("pretrain", "simclr", "--data", data, *quick, "--steps", 3, "--out", tmp_path / "run").code == 0
    for command in ("knn", "probe", "retrieval"):
        result = sslkit(command, "--ckpt", checkpoint, "--data", data, "--test", data, "--json").json
        assert all(np.isfinite(row["metrics"][0]["value"]) for row in result["rows"])
    ran = sslkit("map", "--ckpt", checkpoint, "--data", data, "--out", tmp_path / "map.png")
    assert ran.code == 2 and "the features of all images are alike" in ran.err and not (tmp_path / "map.png").exists()


@pytest.mark.slow
def test_nothing_is_fetched_from_a_network(
    sslkit: Run, digits: Path, trained: Path, quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = socket.socket.connect

    def refuse(*arguments: object) -> None:
        raise AssertionError(f"a connection to {arguments}")

    def only_here(self: socket.socket, address: Any) -> None:
        connect(self, address) if self.family == socket.AF_UNIX else refuse(address)  # workers hand over batches so

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", only_here)
    how = ["--ckpt", trained, "--data", digits]
    timm = ["--encoder", "resnet10t", "--size", 32, "--batch-size", 16, "--workers", 0]
    assert sslkit("pretrain", "rotation", "--data", digits, *timm, "--steps", 1, "--out", tmp_path / "run").code == 0
    assert sslkit("knn", *how).code == 0
    assert sslkit("finetune", *how, "--steps", 2, "--batch-size", 16, "--out", tmp_path / "tuned").code == 0
    assert sslkit("report", tmp_path / "run", "--out", tmp_path / "report.html").code == 0
