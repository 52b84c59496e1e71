"""Does it cost accuracy to keep images at 8/7 of the size they are trained at, and not at twice that size?

    python benchmarks/canvas.py --data DIR --runs RUNS

A random crop of a small canvas is enlarged more. CIFAR-10's images of 32 pixels are trained at 16, with canvases of 18 (8/7,
the default above 64 pixels) and of 32 (twice): the same shares as 110 and 192 pixels for 96. Prints the table.
"""

import argparse
from pathlib import Path

from commands import sslkit

SIZE, CANVASES = 16, (18, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with train.csv and test.csv of benchmarks/subset.py")
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--tasks", default="simclr,rotation")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    data = ["--data", arguments.data / "train.csv"]
    test = ["--test", arguments.data / "test.csv", "--label", "label", "--protocol", "knn/weighted200-v1", "--no-baselines"]
    print("| task | seed | canvas | k-NN, weighted200 |", "|---|---|---|---|", sep="\n", flush=True)
    for task in arguments.tasks.split(","):
        for seed in range(arguments.seeds):
            for canvas in CANVASES:
                out = arguments.runs / f"{task}-{canvas}-{seed}"
                sizes = ["--size", SIZE, "--canvas", canvas]
                sslkit("pretrain", task, *data, *sizes, "--steps", arguments.steps, "--seed", seed, "--out", out, "--resume")
                (row,) = sslkit("knn", "--ckpt", out / "model.safetensors", *data, *test)["rows"]
                top1 = row["metrics"][0]
                accuracy = f"{top1['value']:.1%} ({100 * top1['low']:.1f} to {100 * top1['high']:.1f})"
                cells = [task, str(seed), str(canvas), accuracy]
                print("|", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
