"""k-means against scikit-learn's MiniBatchKMeans, in turns in one process: seconds and inertia.

python benchmarks/kmeans.py --points 50000 --width 128 --clusters 100 --turns 5
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from sklearn.cluster import MiniBatchKMeans
from torch import Tensor

from sslkit.nn import kmeans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--points", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    for name, points in data(arguments.points, arguments.width, arguments.clusters).items():
        measurements: dict[str, list[tuple[float, float]]] = {"sslkit": [], "MiniBatchKMeans": []}
        for turn in range(arguments.turns + 1):
            torch.manual_seed(turn)
            ours = timed(lambda points=points: kmeans(points, arguments.clusters).inertia)
            array, seed = points.numpy(), turn
            theirs = timed(
                lambda array=array, seed=seed: (
                    MiniBatchKMeans(arguments.clusters, n_init="auto", random_state=seed).fit(array).inertia_
                )
            )
            if turn:  # the first of each warms up
                measurements["sslkit"].append(ours)
                measurements["MiniBatchKMeans"].append(theirs)
        for way, results in measurements.items():
            seconds, inertia = (statistics.median(values) for values in zip(*results, strict=True))
            print(f"{name:<10} {way:<16} {seconds:.2f} s  inertia {inertia:.5g}")
        ratio = statistics.median(our[0] / their[0] for our, their in zip(*measurements.values(), strict=True))
        worse = statistics.median(our[1] / their[1] for our, their in zip(*measurements.values(), strict=True))
        print(f"{name:<10} ratio of time {ratio:.2f}, of inertia {worse:.4f}")


def data(points: int, width: int, clusters: int) -> dict[str, Tensor]:
    """Return unit vectors without and with clusters in them."""
    torch.manual_seed(0)
    noise = torch.randn(points, width)
    centers = torch.randn(clusters, width)
    mixed = centers[torch.randint(clusters, (points,))] + noise
    return {name: torch.nn.functional.normalize(rows, dim=1) for name, rows in (("noise", noise), ("clusters", mixed))}


def timed(run: Callable[[], float]) -> tuple[float, float]:
    start = time.perf_counter()
    inertia = run()
    return time.perf_counter() - start, inertia


if __name__ == "__main__":
    main()
