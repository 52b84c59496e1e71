"""Measure sslkit on one GPU: no downloads; each part writes its results as they come.

    python benchmarks/gpu.py --only a,b,c --seconds 240
    python benchmarks/gpu.py --only d --cifar CIFAR10.tar.gz
    python benchmarks/gpu.py --tiny --out DIR                  # everything small, on a CPU
    python benchmarks/gpu.py --table                           # write benchmarks/gpu.md

a  the tests that need CUDA: no hidden synchronization in any task, compilation of six tasks, and the rest
b  simclr with ViT-S/16 at 224 px: images per second, share of the transform, ratio to the same network on one tensor
c  the same of other tasks and encoders, peak memory, and a batch of 4,096 in micro-batches
d  CIFAR-10, ResNet-18, SimCLR for four minutes: images per second, and k-NN on the test images

Networks are compiled beside the tests, several at a time; then each is measured alone. What a time limit cuts off leaves the
finished parts in --out. benchmarks/gpu.sh prepares and runs this on a machine without network.
"""

import argparse
import json
import multiprocessing
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter, defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.util import find_spec
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from gpu_table import write_table
from gpu_workloads import WORKLOADS, Report, serve, shrink, write_canvases

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
RESERVED = 12  # seconds of --seconds that are kept for measuring each workload
COMPILED = ("rotation", "simclr", "moco", "swav", "dino", "mae")  # the six tasks of part a
ALL_TASKS = "test_a_run_with_the_defaults_of_a_gpu"  # the test that compiles every task: too many for a rented minute


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="a,b,c,d", help="parts, with commas between them")
    parser.add_argument("--out", type=Path, default=HERE / "gpu", help="folder of the JSON files")
    parser.add_argument(
        "--seconds", type=float, default=float("inf"), help="time for parts a to c; what does not fit is skipped"
    )
    parser.add_argument("--jobs", type=int, default=max(1, (os.cpu_count() or 1) // 4), help="networks compiled at a time")
    parser.add_argument(
        "--cifar", type=Path, default=ROOT / ".gpu-data" / "cifar10.tar.gz", help="images in train/CLASS/, test/"
    )
    parser.add_argument("--minutes", type=float, default=4.0, help="training time of part d")
    parser.add_argument("--tiny", action="store_true", help="everything small, on any device; needs --out")
    parser.add_argument("--table", action="store_true", help="write the table of the results in --out to benchmarks/gpu.md")
    arguments = parser.parse_args()
    parts = arguments.only.split(",")
    if arguments.table:
        write_table(arguments.out, HERE / "gpu.md")
        return
    if arguments.tiny and arguments.out == HERE / "gpu":
        parser.error("--tiny needs --out: benchmarks/gpu is for results of a GPU")
    if not arguments.tiny and not torch.cuda.is_available():
        parser.error("no CUDA device; --tiny runs everything small on a CPU")
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.tiny:
        os.environ["OMP_NUM_THREADS"] = "1"  # of all processes: tiny tensors gain nothing from threads
    results = Results(arguments.out, arguments.tiny)
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("SSLKIT_CACHE", str(Path(scratch, "cache")))
        if {"a", "b", "c"} & set(parts):
            run_networks([part for part in parts if part in "abc"], arguments, results, Path(scratch))
        if "d" in parts:
            run_cifar(arguments, results, Path(scratch))
    if arguments.tiny:
        write_table(arguments.out, arguments.out / "gpu.md")
    sys.exit(1 if results.failed else 0)


class Results:
    """Write the results of each part into a JSON file with the machine, the versions and the commit."""

    def __init__(self, folder: Path, tiny: bool) -> None:
        self.folder, self.failed = folder, False
        card, driver, memory = _card()
        self.machine = {
            "card": card,
            "driver": driver,
            "memory": memory,
            "cuda": torch.version.cuda,
            "cores": os.cpu_count(),
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "torchvision", "timm", "sslkit")},
            "commit": _commit(),
            "tiny": tiny,
        }

    def write(self, part: str, content: Mapping[str, Any], failed: bool = False) -> None:
        """Write a part's results so far, replacing the file in one step."""
        self.failed |= failed
        file = self.folder / f"{part}.json"
        header = {"part": part, "date": datetime.now(UTC).isoformat(timespec="seconds"), **self.machine}
        file.with_suffix(".tmp").write_text(json.dumps({**header, **content}, indent=1) + "\n")
        file.with_suffix(".tmp").replace(file)
        print(f"part {part}: {file}", flush=True)


def _card() -> tuple[str, str | None, str | None]:
    """Return the card, its driver and its memory; of a machine without one, that it is a CPU."""
    if not torch.cuda.is_available():
        return "CPU", None, None
    command = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    first = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[0]
    card, driver, memory = first.split(", ")
    return card, driver, memory


def _commit() -> str:
    """Return the commit of the checkout; where there is no .git, what benchmarks/gpu.sh put into SSLKIT_COMMIT."""
    if "SSLKIT_COMMIT" in os.environ:
        return os.environ["SSLKIT_COMMIT"]
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def run_networks(parts: list[str], arguments: argparse.Namespace, results: Results, scratch: Path) -> None:
    """Run parts a to c: compile beside the tests, then measure one network after the other."""
    deadline = time.monotonic() + arguments.seconds
    tests = Tests(scratch / "tests.xml", arguments.tiny) if "a" in parts else None
    pending = {name: workload for part in parts for name, workload in WORKLOADS.get(part, {}).items()}
    data = write_canvases(scratch, arguments.tiny) if pending else scratch
    networks = Networks({name: shrink(workload) if arguments.tiny else workload for name, workload in pending.items()})
    try:
        preparation = deadline - RESERVED * len(pending)
        networks.warm_up(data, arguments.tiny, arguments.jobs, preparation)
        if tests is not None:
            report = tests.finish(preparation)
            results.write("a", report, failed=bool(report["failures"]))
        for part in parts:
            reports: dict[str, Report] = {}
            for name in WORKLOADS.get(part, {}):
                reports[name] = networks.measure(name, deadline)
                print(f"{name}: {json.dumps(reports[name])}")
                results.write(part, {"workloads": reports}, failed="error" in reports[name])
    finally:
        networks.close()


class Tests:
    """The tests that need CUDA, in a process beside this one; on a CPU the contract's checks of two tasks stand in for them."""

    def __init__(self, report: Path, tiny: bool) -> None:
        self.report, self.began = report, time.monotonic()
        files = sorted((ROOT / "tests").rglob("test_*.py"))
        chosen = [str(file) for file in files if "mark.cuda" in file.read_text(encoding="utf-8")]
        if tiny:
            chosen += [f"tests/test_contract.py::test_installed_task[{task}]" for task in ("simclr", "mae")]
        tasks = " or ".join(f"[{task}]" for task in COMPILED)
        chosen += ["-m", "cuda or not slow" if tiny else "cuda", "-k", f"(cuda or contract) and (not {ALL_TASKS} or {tasks})"]
        processes = ["-n", str(max(1, (os.cpu_count() or 1) // 4))] if find_spec("xdist") and not tiny else []
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *processes, *chosen]
        self.process = subprocess.Popen(command, cwd=ROOT, stdout=sys.stderr, start_new_session=True)

    def finish(self, deadline: float) -> Report:
        """Wait for the tests and return how many of each function passed, failed or were skipped."""
        try:
            self.process.wait(min(max(1, deadline - time.monotonic()), 10**6))
        except subprocess.TimeoutExpired:
            os.killpg(self.process.pid, signal.SIGKILL)  # with the processes it runs tests in
            return {"failures": ["the tests did not end in the time that --seconds leaves"]}
        if not self.report.exists():
            return {"failures": [f"pytest ended with {self.process.returncode} and without a report"]}
        counts: dict[str, Counter[str]] = defaultdict(Counter)
        failures = []
        for case in ElementTree.parse(self.report).iter("testcase"):
            problem = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
            outcome = "passed" if problem is None else "skipped" if problem.tag == "skipped" else "failed"
            counts[case.attrib["name"].partition("[")[0]][outcome] += 1
            if problem is not None and outcome == "failed":
                message = problem.attrib.get("message", "").partition("\n")[0]
                failures.append(f"{case.attrib['name']}: {message}"[:300])
        return {"seconds": round(time.monotonic() - self.began, 1), "tests": counts, "failures": failures}


class Networks:
    """The workloads of parts b and c, each in a process that warms up and then waits until it is measured."""

    def __init__(self, workloads: dict[str, Any]) -> None:
        self.workloads, self.longest = workloads, 0.0
        self.reports: dict[str, Report] = {}  # of those that will not be measured: why
        self.ready: dict[str, Connection] = {}
        self.processes: dict[str, Any] = {}

    def warm_up(self, data: Path, tiny: bool, jobs: int, deadline: float) -> None:
        """Build, compile and take a few steps, several workloads at a time; those that are not ready in time are skipped."""
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["timm", "sslkit.engine.pretrain"])  # imported once; CUDA starts in each process
        left, warming = list(self.workloads), dict[Connection, str]()
        while left or warming:
            while left and len(warming) < jobs:
                name, (ours, theirs) = left.pop(0), context.Pipe()
                self.processes[name] = context.Process(target=serve, args=(self.workloads[name], data, tiny, theirs))
                self.processes[name].start()
                theirs.close()
                warming[ours] = name
            answered = wait(list(warming), timeout=min(max(0, deadline - time.monotonic()), 10**6))
            if not answered:
                break
            for pipe in answered:
                name = warming.pop(pipe)
                report = self._receive(name, pipe)
                if "error" in report:
                    self.reports[name] = report
                else:
                    self.ready[name] = pipe
        for name in (*warming.values(), *left):
            self.reports[name] = {"skipped": "not compiled in the time that --seconds leaves"}
            self._stop(name)

    def measure(self, name: str, deadline: float) -> Report:
        """Return the results of one workload, which runs alone; the longest so far has to fit the time that is left."""
        if name in self.reports:
            return self.reports[name]
        left, began = deadline - time.monotonic(), time.monotonic()
        if left < self.longest:
            self._stop(name)
            return {"skipped": f"{left:.0f} s of --seconds were left, and another workload took {self.longest:.0f} s"}
        report = self._receive(name, self.ready[name], "measure")
        self.processes[name].join()
        self.longest = max(self.longest, time.monotonic() - began)
        return report

    def close(self) -> None:
        """End all processes."""
        for name in self.processes:
            self._stop(name)

    def _receive(self, name: str, pipe: Connection, request: str | None = None) -> Report:
        try:
            if request is not None:
                pipe.send(request)
            report: Report = pipe.recv()
        except (EOFError, OSError):
            self.processes[name].join()
            return {"error": f"the process ended with {self.processes[name].exitcode}"}
        return report

    def _stop(self, name: str) -> None:
        if name in self.processes:
            self.processes[name].terminate()
            self.processes[name].join()


def run_cifar(arguments: argparse.Namespace, results: Results, scratch: Path) -> None:
    """Run part d: train, and write the speed; then evaluate, and write both."""
    run, small = scratch / "run", ["--encoder", "resnet_micro", "--batch-size", "64", "--steps", "6"]
    if arguments.tiny:
        _sslkit("demo", "--images-only", "--out", scratch / "digits")
        data, how, hidden = scratch / "digits" / "images", small, 64
    else:
        data, hidden = scratch / "cifar10", 512
        data.mkdir()
        subprocess.run(["tar", "-xzf", arguments.cifar, "-C", data], check=True)
        # The learning rate of the default, 0.12 at a batch of 256; the projector as wide as the encoder, as in the paper.
        how = ["--encoder", "resnet18", "--batch-size", "512", "--lr", "0.24", "--minutes", str(arguments.minutes)]
    command = ["pretrain", "simclr", "--data", data, "--size", "32", "--hidden", str(hidden), *how, "--out", run]
    trained = _sslkit(*command)
    settings = json.loads((run / "spec.json").read_text())
    images = sum(1 for file in (data / "train" if (data / "train").is_dir() else data).rglob("*") if file.is_file())
    report: Report = {
        "command": " ".join(map(str, ("sslkit", *command))).replace(str(scratch), "SCRATCH"),
        "images": images,
        "minutes": None if arguments.tiny else arguments.minutes,
        "steps": trained["steps"],
        "epochs": round(trained["steps"] * settings["batch_size"] / images, 1),
        "images_per_second": trained["samples_per_second"],
        "seconds": trained["seconds"],
    }
    results.write("d", report)
    how = ["--ckpt", run / "model.safetensors", "--protocol", "knn/weighted200-v1", "--no-baselines"]
    evaluated = _sslkit("knn", *how)
    (row,) = evaluated["rows"]
    top1 = row["metrics"][0]
    knn = {"value": top1["value"], "low": top1["low"], "high": top1["high"], "test_images": top1["n"]}
    results.write("d", {**report, "protocol": evaluated["protocol"], "knn": knn})


def _sslkit(*arguments: Any) -> dict[str, Any]:
    """Return what a command of sslkit prints as JSON."""
    command = [sys.executable, "-m", "sslkit", *map(str, arguments), "--json"]
    printed: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return printed


if __name__ == "__main__":
    main()
