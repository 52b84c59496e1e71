"""Peak memory of SimCLR as the batch grows with `--micro-batch` fixed: two steps of each size in a process of its own.

On CUDA what torch allocated; elsewhere the peak of the process, of which the part before the first step is shown apart.

    python benchmarks/memory.py --data LIST_OR_FOLDER --batches 128,512,1024,4096 --micro-batch 128
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

_STEPS = """
import json, resource, sys
import torch
sys.path.insert(0, sys.argv[1])
from sslkit import PretrainSpec
from throughput import engine_steps, new_stepper
settings = json.loads(sys.argv[2])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
steps = engine_steps(new_stepper(PretrainSpec(task="simclr", **settings, steps=10**6)))
if torch.cuda.is_available():
    next(steps), next(steps)
    print(0, torch.cuda.max_memory_allocated() / 1e6)
else:
    before = peak()
    next(steps), next(steps)
    print(before, peak())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--batches", default="128,512,1024,4096")
    parser.add_argument("--micro-batch", type=int, default=128)
    parser.add_argument("--encoder", default="auto")
    parser.add_argument("--size", default="auto")
    arguments = parser.parse_args()
    first = None
    for batch_size in map(int, arguments.batches.split(",")):
        settings = {"data": arguments.data, "batch_size": batch_size, "micro_batch": arguments.micro_batch}
        settings |= {"encoder": arguments.encoder, "size": arguments.size}
        command = [sys.executable, "-c", _STEPS, str(Path(__file__).parent), json.dumps(settings)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        before, peak = map(float, done.stdout.split())
        first = first or peak
        row = {"batch": batch_size, "before_mb": round(before), "peak_mb": round(peak), "ratio": round(peak / first, 2)}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
