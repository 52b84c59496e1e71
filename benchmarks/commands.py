"""What benchmarks share: running commands of sslkit, and where and with what they ran."""

import json
import os
import platform
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch


def sslkit(*words: Any, threads: int | None = None) -> dict[str, Any]:
    """Run a command in a process of its own, on so many cores, and return what it printed as JSON."""
    print("sslkit", *words, file=sys.stderr, flush=True)
    environment = os.environ if threads is None else {**os.environ, "OMP_NUM_THREADS": str(threads)}
    result: dict[str, Any] = json.loads(
        output_of(sys.executable, "-m", "sslkit", *map(str, words), "--json", environment=environment)
    )
    return result


def output_of(*words: str, environment: Any = None) -> str:
    """Return what a command printed; what it says on stderr goes to ours."""
    return subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout.strip()


def logged(run: Path) -> list[dict[str, Any]]:
    """Return the logged lines of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def row_of(row: dict[str, Any]) -> dict[str, Any]:
    """Return a model's first figure with its interval, and the comparison with the checkpoint."""
    metric = row["metrics"][0]
    names = ("difference", "low", "high", "p_value")
    differences = {model: {name: value[name] for name in names} for model, value in row["comparisons"].items()}
    return {"model": row["model"], **{name: metric[name] for name in ("value", "low", "high", "n")}, "differences": differences}


def provenance() -> dict[str, str]:
    """Return date, commit and machine, for the record."""
    commit = output_of("git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD")
    machine = f"{os.cpu_count()} cores, {cpu_name()}, torch {torch.__version__}"
    return {"date": date.today().isoformat(), "commit": commit, "machine": machine}


def cpu_name() -> str:
    """Return the CPU's name as the system spells it."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
