"""Disks that are full, read-only or gone, and two runs in one folder."""

import os
import random
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kills import wait_for
from promises import TINY, Process, Promise, left_over, ran, same_weights, step_of


def full_disks(folder: Path, data: Path, long: bool) -> list[Promise]:
    """Let the disk end at many sizes: files that may not grow, and, where mounting is allowed, a small file system."""
    line = Promise("a disk that ends, at random sizes", "exit code 2 before the first step, 1 after it; one line of error")
    kept = Promise("the same, where there was a checkpoint", "it can be read, and goes on to the same weights")
    clean = Promise("the same", "no temporary files")
    seed = random.Random(2)
    how = ["pretrain", "rotation", "--data", data, *TINY, "--steps", 30, "--checkpoint-every", 10]
    assert ran(*how, "--out", folder / "whole")[0] == 0
    largest = (folder / "whole" / "resume.pt").stat().st_size
    for number in range(60 if long else 12):
        # Every other one has room for a checkpoint, but not for the next beside it.
        size = int(largest * (seed.uniform(1.2, 2.4) if number % 2 else 10 ** seed.uniform(-3.5, 0.8)))
        with small_disk(folder / "disk", size) as limits:
            out = folder / "disk" / "run"
            code, errors = ran(*how, "--out", out, limits=limits)
            step = step_of(out)
            expected = 0 if code == 0 else 1 if (out / "metrics.jsonl").exists() else 2
            line.check(code == expected and len(errors) == (code != 0), f"{size} bytes: code {code}, {errors}")
            leftovers = left_over(out)
            clean.check(not leftovers, f"{size} bytes: {leftovers}")
            if step and code:
                shutil.copytree(out, folder / f"copy-{number}")
                code, errors = ran(*how, "--out", folder / f"copy-{number}", "--resume")
                same = code == 0 and same_weights(folder / "whole", folder / f"copy-{number}")
                kept.check(same, f"{size} bytes, step {step}: code {code}, {errors}")
    full = Promise("no room for the cache", "exit code 2 and one line, or the run goes without", 0, 0)
    for size in (1000, 100_000):
        os.environ["SSLKIT_CACHE"], before = str(folder / "disk" / "cache"), os.environ["SSLKIT_CACHE"]
        with small_disk(folder / "disk", size) as limits:
            code, errors = ran(*how, "--steps", 2, "--cache", "on", "--out", folder / f"cached-{size}", limits=limits)
            full.check(code == 2 and len(errors) == 1, f"{size} bytes: code {code}, {errors}")
        os.environ["SSLKIT_CACHE"] = before
    exported = Promise("an export that does not fit on the disk", "exit code 2, one line, no file")
    for target in ("pt2", "onnx"):
        with small_disk(folder / "disk", largest // 8) as limits:
            out = folder / "disk" / "exported"
            code, errors = ran(
                "export", "--ckpt", folder / "whole" / "model.safetensors", "--to", target, "--out", out, limits=limits
            )
            left = sorted(file.name for file in out.parent.iterdir())
            exported.check(code == 2 and len(errors) == 1 and not left, f"{target}: code {code}, {errors}, {left}")
    return [line, kept, clean, full, exported]


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[dict[int, int]]:
    """Give a folder of so many bytes, or, where nothing can be mounted, a limit for each file."""
    folder.mkdir(exist_ok=True)
    mounted = may_mount(folder, f"size={max(size, 4096)}")
    try:
        yield {} if mounted else {resource.RLIMIT_FSIZE: size}
    finally:
        if mounted:
            subprocess.run(["umount", "-l", folder], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def may_mount(folder: Path, options: str) -> bool:
    """Mount a file system in memory, if that is allowed."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder]
    return shutil.which("mount") is not None and subprocess.run(command, check=False, capture_output=True).returncode == 0


def two_runs(folder: Path, data: Path, long: bool) -> list[Promise]:
    """Let folders be taken, left by the dead, read-only, and go."""
    how = ["pretrain", "rotation", "--data", data, *TINY, "--checkpoint-every", 5]
    second = Promise(
        "a second run in a folder that is in use", "exit code 2, `another process is working in`; the first is not hurt"
    )
    stale = Promise("a run in the folder of a process that was killed", "it goes on")
    gone = Promise("the output folder is removed during the run", "exit code 1, one line; the folder is not made anew")
    locked = Promise("an output folder that is read-only", "exit code 2, one line")
    for number in range(5 if long else 2):
        out = folder / f"run-{number}"
        first = Process(*how, "--steps", 10**6, "--out", out)
        wait_for(out / "resume.pt")
        code, errors = ran(*how, "--steps", 10**6, "--out", out, "--resume")
        refused = len(errors) == 1 and "another process is working in" in errors[0]
        second.check(code == 2 and refused and first.wait(0.1) is None, f"code {code}, {errors}")
        first.kill()
        step = step_of(out)
        process = Process(*how, "--steps", 10**6, "--out", out, "--resume")
        deadline = time.monotonic() + 30
        while step_of(out) <= step and time.monotonic() < deadline:
            time.sleep(0.05)
        stale.check(step_of(out) > step, f"step {step_of(out)} after {step}")
        out.rename(folder / "removed")  # in one instant: while a process writes, rm -r may find the folder not empty
        shutil.rmtree(folder / "removed")
        code = process.wait(30)
        anew = [str(file) for file in out.rglob("*")]
        gone.check(code == 1 and len(process.errors) == 1 and not out.exists(), f"code {code}, {process.errors}, {anew}")
        if code is None:
            process.kill()
    shared = Promise("two runs that index and decode the same images into one cache at once", "both end as one alone does")
    for number in range(5 if long else 2):
        os.environ["SSLKIT_CACHE"], before = str(folder / f"cache-{number}"), os.environ["SSLKIT_CACHE"]
        left, right, alone = (folder / f"{name}-{number}" for name in ("left", "right", "alone"))
        both = [Process(*how, "--steps", 20, "--workers", 2, "--out", out) for out in (left, right)]
        codes = [process.wait(120) for process in both]
        os.environ["SSLKIT_CACHE"] = before
        code, _ = ran(*how, "--steps", 20, "--out", alone)
        same = code == 0 and codes == [0, 0] and same_weights(left, alone) and same_weights(right, alone)
        shared.check(same, f"codes {codes}")
    disk = folder / "disk"
    disk.mkdir()
    if may_mount(disk, "size=1m,ro"):
        code, errors = ran(*how, "--steps", 2, "--out", disk / "run")
        locked.check(code == 2 and len(errors) == 1, f"code {code}, {errors}")
        subprocess.run(["umount", "-l", disk], check=True)
    elif os.getuid():
        disk.chmod(0o500)
        code, errors = ran(*how, "--steps", 2, "--out", disk / "run")
        locked.check(code == 2 and len(errors) == 1, f"code {code}, {errors}")
        disk.chmod(0o700)
    return [second, stale, gone, locked, shared]
