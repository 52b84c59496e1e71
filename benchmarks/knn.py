"""k-NN against the bare matrix product plus top-k: `python benchmarks/knn.py [--turns 3] [--k 20]`.

10,000 queries against 50,000 × 512 random features, alternating in one process: the product and `topk` in chunks of the same
size, sslkit's votes, and scikit-learn's brute force on a tenth of the queries (times ten).
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F

from sslkit.evaluation.knn import chunk_of, votes


def main(turns: int, k: int) -> None:
    """Print seconds and ratios."""
    from sklearn.neighbors import KNeighborsClassifier

    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(50_000, 512, generator=generator), torch.randn(10_000, 512, generator=generator)
    labels = torch.randint(0, 10, (50_000,), generator=generator)
    normalized_train, normalized_test = F.normalize(train, dim=1), F.normalize(test, dim=1)
    theirs = KNeighborsClassifier(k, algorithm="brute").fit(normalized_train.numpy(), labels.numpy())

    def bare() -> None:
        for queries in normalized_test.split(chunk_of(len(normalized_train))):
            (queries @ normalized_train.T).topk(k, dim=1)

    def ours() -> None:
        votes(train, labels, test, k, 0.07, 10)

    def scikit_learn() -> None:
        theirs.predict(normalized_test[:1000].numpy())

    seconds: dict[str, list[float]] = {"bare": [], "ours": [], "scikit-learn": []}
    calls: dict[str, Callable[[], None]] = {"bare": bare, "ours": ours, "scikit-learn": scikit_learn}
    for _ in range(turns):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            seconds[name].append((time.perf_counter() - began) * (10 if name == "scikit-learn" else 1))
    for name, values in seconds.items():
        ratio = statistics.median(value / reference for value, reference in zip(values, seconds["bare"], strict=True))
        print(f"k={k} {name:<13} median {statistics.median(values):6.2f} s, ratio to bare {ratio:.2f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--k", type=int, default=20)
    arguments = parser.parse_args()
    main(arguments.turns, arguments.k)
