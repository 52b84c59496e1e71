"""How long a user waits: for help and listings, and for the first optimization step on cached data.

Each command runs in a process of its own, in turns; the first run of each is not counted.

    python benchmarks/startup.py --data LIST_OR_FOLDER    # without --data, help and listings only
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

_FIRST_STEP = """
import sys, time
began = float(sys.argv.pop(1))
from sslkit.cli.app import main
from sslkit.engine.throughput import Throughput
finish_step = Throughput.finish_step
def report_first(self, samples):
    finish_step(self, samples)
    if self.steps == 1:
        print(f"first step {time.time() - began:.3f}", file=sys.stderr)
Throughput.finish_step = report_first
main(sys.argv[1:])
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data")
    parser.add_argument("--runs", type=int, default=5)
    arguments = parser.parse_args()
    commands = {"--help": ["--help"], "pretrain --help": ["pretrain", "--help"], "tasks": ["tasks"]}
    seconds: dict[str, list[float]] = {name: [] for name in [*commands, *["first step, simclr"][: arguments.data is not None]]}
    for run in range(arguments.runs + 1):
        for name, words in commands.items():
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "sslkit", *words], check=True, capture_output=True)
            if run:
                seconds[name].append(time.perf_counter() - began)
        taken = first_step(arguments.data) if arguments.data else 0.0
        if run and arguments.data:
            seconds["first step, simclr"].append(taken)
    print(
        json.dumps(
            {name: [round(statistics.median(times), 2), *sorted(round(t, 2) for t in times)] for name, times in seconds.items()}
        )
    )


def first_step(data: str) -> float:
    """Return the seconds from starting the command to the end of the first training step, its rehearsal included."""
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "pretrain",
            "simclr",
            "--data",
            data,
            "--steps",
            "30",
            "--batch-size",
            "256",
            "--out",
            str(Path(folder, "run")),
        ]
        command = [sys.executable, "-c", _FIRST_STEP, str(time.time()), *words]
        with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
            assert process.stderr is not None
            for line in process.stderr:
                if line.startswith("first step"):
                    process.kill()
                    return float(line.split()[-1])
    raise SystemExit("the run ended without a step")


if __name__ == "__main__":
    main()
