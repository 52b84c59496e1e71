"""SIGKILL at any moment, ten times before the run may finish; SIGTERM, SIGINT, and a second one."""

import json
import os
import random
import shutil
import signal
import time
from pathlib import Path

from promises import TINY, Process, Promise, left_over, ran, same_weights, step_of

from sslkit import SslkitError

_STEPS, _EVERY, _KILLS = 200, 4, 10


def chains(folder: Path, data: Path, long: bool) -> list[Promise]:
    """Kill runs in chains of ten kills, each with an empty cache at its beginning, and compare with one that was left alone."""
    bits = Promise(f"chains of {_KILLS} SIGKILLs while indexing, caching, stepping, saving", "weights equal to the bit")
    readable = Promise("after each SIGKILL", "the checkpoint can be read")
    lost = Promise("after each SIGKILL", f"at most --checkpoint-every {_EVERY} steps are lost")
    clean = Promise("after each chain", "no temporary files in run and cache")
    seed = random.Random(0)
    cache = Path(os.environ["SSLKIT_CACHE"])
    how = ["--data", data, *TINY, "--steps", _STEPS, "--checkpoint-every", _EVERY]
    began = time.monotonic()
    assert ran("pretrain", "simclr", *how, "--out", folder / "whole")[0] == 0
    whole = time.monotonic() - began
    for number in range(10 if long else 3):
        out = folder / f"chain-{number}"
        shutil.rmtree(cache, ignore_errors=True)
        chain = ["pretrain", "simclr", *how, "--out", out, "--resume", "--workers", number % 2]
        kills = 0
        while True:
            process = Process(*chain)
            code = process.wait(seed.uniform(0, 0.3 * whole)) if kills < _KILLS else process.wait()
            if code is not None:
                break
            process.kill()
            kills += 1
            try:
                step = step_of(out)
                readable.check(True, "")
            except SslkitError as error:
                readable.check(False, str(error))
                continue
            logged = logged_steps(out)
            lost.check(logged - step <= _EVERY, f"{logged} steps were logged and {step} are in the checkpoint")
        bits.check(code == 0 and same_weights(folder / "whole", out), f"chain {number}: code {code}, {kills} kills")
        leftovers = left_over(out, cache)
        clean.check(not leftovers, str(leftovers))
    return [bits, readable, lost, clean]


def logged_steps(run: Path) -> int:
    """Return how many steps the log of a run knows."""
    lines = (run / "metrics.jsonl").read_text().splitlines() if (run / "metrics.jsonl").exists() else []
    whole = [line for line in lines if line.endswith("}")]  # the last may have been cut off
    return int(json.loads(whole[-1])["step"]) + 1 if whole else 0


def signals(folder: Path, data: Path, long: bool) -> list[Promise]:
    """Ask runs to stop."""
    once = Promise("SIGTERM, SIGINT", "a checkpoint of the step it was in, exit code 128 + signal, no temporary files")
    twice = Promise("a second signal", "it ends within a second, the last checkpoint can be read")
    how = ["--data", data, *TINY, "--steps", 10**6, "--checkpoint-every", 50]
    seed = random.Random(1)
    for number in range(10 if long else 4):
        which = (signal.SIGTERM, signal.SIGINT)[number % 2]
        out = folder / f"once-{number}"
        process = Process("pretrain", "rotation", *how, "--out", out)
        wait_for(out / "resume.pt")
        time.sleep(seed.uniform(0, 0.3))
        process.signal(which)
        code = process.wait(20)
        behind = logged_steps(out) - step_of(out)
        leftovers = left_over(out)
        once.check(code == 128 + which and behind <= 0 and not leftovers, f"code {code}, {behind} steps behind, {leftovers}")

        out = folder / f"twice-{number}"
        process = Process("pretrain", "rotation", *how, "--out", out)
        wait_for(out / "resume.pt")
        time.sleep(seed.uniform(0, 0.3))
        process.signal(which)
        time.sleep(0.005)  # two that arrive at once count as one
        process.signal(which)
        code = process.wait(1.0)
        if code is None:
            process.kill()
        twice.check(code is not None and step_of(out) >= 50, f"code {code}")
    return [once, twice]


def wait_for(file: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 60
    while not file.exists():
        if time.monotonic() > deadline:
            raise SystemExit(f"{file} did not come")
        time.sleep(0.01)
