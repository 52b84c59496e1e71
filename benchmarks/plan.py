"""Does `sslkit plan` tell the truth? Its speed and time against real runs, three times in turns.

python benchmarks/plan.py --tasks rotation,simclr,mae --data DIR/train.csv --runs RUNS --steps 80
"""

import argparse
import json
import statistics
from pathlib import Path

from commands import sslkit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tasks", required=True, help="names with commas between them")
    parser.add_argument("--data", required=True)
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--turns", type=int, default=3)
    arguments = parser.parse_args()
    for task in arguments.tasks.split(","):
        speeds, times, memories = [], [], []
        for turn in range(arguments.turns):
            settings = [task, "--data", arguments.data, "--steps", arguments.steps]
            plan = sslkit("plan", *settings)
            out = arguments.runs / f"plan-{task}-{turn}"
            run = sslkit("pretrain", *settings, "--out", out)
            lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
            speeds.append(plan["samples_per_second"] / run["samples_per_second"])
            times.append(plan["seconds"] / lines[-1]["seconds"])
            memories.append(plan["memory"] / lines[-1]["memory"])
        medians = {"speed": speeds, "time": times, "memory": memories}
        print(
            json.dumps(
                {
                    "task": task,
                    "steps": arguments.steps,
                    **{f"{name}_told_to_real": round(statistics.median(ratios), 3) for name, ratios in medians.items()},
                    **{f"{name}s": [round(ratio, 3) for ratio in sorted(ratios)] for name, ratios in medians.items()},
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
