"""What keeping freed memory is worth: the fixed-tensor loop of throughput.py with and without it, in processes in turn.

python benchmarks/allocator.py simclr --data LIST_OR_FOLDER
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

_LOOP = """
import resource, sys
sys.path.insert(0, sys.argv[1])
from sslkit import PretrainSpec
from sslkit.engine import stepper
if sys.argv[4] == "default":
    stepper.keep_freed_memory = lambda: None
from throughput import fixed_tensor_steps, new_stepper, turn
steps = fixed_tensor_steps(new_stepper(PretrainSpec(task=sys.argv[2], data=sys.argv[3], batch_size=256, steps=10**6)))
turn(steps, 2)
seconds = min(turn(steps, 3) for _ in range(3))
print(256 / seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("task")
    parser.add_argument("--data", required=True)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    measurements: dict[str, list[list[float]]] = {"default": [], "kept": []}
    for _ in range(arguments.turns):
        for mode, runs in measurements.items():
            command = [sys.executable, "-c", _LOOP, str(Path(__file__).parent), arguments.task, arguments.data, mode]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            runs.append([float(number) for number in done.stdout.split()])
    ratios = [kept[0] / default[0] for kept, default in zip(measurements["kept"], measurements["default"], strict=True)]
    medians = {
        mode: [round(statistics.median(column)) for column in zip(*runs, strict=True)] for mode, runs in measurements.items()
    }
    print(
        json.dumps(
            {"task": arguments.task, "images_per_second_and_peak_mb": medians, "ratio": round(statistics.median(ratios), 2)}
        )
    )


if __name__ == "__main__":
    main()
