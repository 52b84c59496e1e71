"""k-NN and logistic regression at ImageNet's shape beside scikit-learn's: time, peak memory, objective, accuracy.

python benchmarks/evaluation.py --samples 100000 --width 1024 --classes 1000 --out benchmarks/evaluation.json

Features are synthetic: a cluster for each class, with the same correlated noise in all. Each part runs in a process of its own,
whose peak memory is its own, and the file is written whenever one ends. `objective` is mean loss + ½‖w‖² / (N·C), computed in
float64 from each one's weights; `logreg-sklearn-default` stops at scikit-learn's default tolerance.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from torch import Tensor

from sslkit.engine.precision import choose_device
from sslkit.evaluation.knn import count_votes, unit_features
from sslkit.evaluation.solvers import Standardized, cross_entropy, fit_linear, linear_scores

K, TEMPERATURE, ITERATIONS = 20, 0.07, 300  # of the protocols knn/weighted-v1 and probe/logreg-v1
Part = Callable[[argparse.Namespace], dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--samples", type=int, default=100_000, help="training samples; a tenth as many test samples")
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--c", type=float, default=0.01)
    parser.add_argument("--tolerance", type=float, default=1e-6, help="of scikit-learn's logistic regression")
    parser.add_argument("--device", default="auto", help="of sslkit's parts; scikit-learn's run on the CPU")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/evaluation.json"))
    parser.add_argument("--run", choices=PARTS, help=argparse.SUPPRESS)  # in a process of its own
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.run:
        print(json.dumps(measured(PARTS[arguments.run], arguments)))
        return
    record: dict[str, Any] = {**environment(arguments), "parts": {}}
    threads = {f"{name}_NUM_THREADS": str(arguments.threads) for name in ("OMP", "OPENBLAS", "MKL")}
    for name in arguments.parts.split(","):
        command = [sys.executable, __file__, *sys.argv[1:], "--run", name]
        process = subprocess.run(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **threads})
        ended = {"failed": process.returncode} if process.returncode else json.loads(process.stdout)
        record["parts"][name] = ended
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")
        print(name, ended, flush=True)


def environment(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return where and with what the parts run."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent)
    device, reason = choose_device(arguments.device)
    sizes = {name: getattr(arguments, name) for name in ("samples", "width", "classes", "c", "tolerance", "threads")}
    return {
        "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "device": f"{device}: {reason}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "scikit-learn": sklearn.__version__,
        **sizes,
    }


def measured(part: Part, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run a part; return its seconds, its peak memory, and how much of that features and imports took before it."""
    arguments.train, arguments.labels, arguments.test, arguments.test_labels = make_data(arguments)
    before = peak_megabytes()
    result = part(arguments)
    if choose_device(arguments.device)[0].type == "cuda":
        result["gpu_peak_mb"] = round(torch.cuda.max_memory_allocated() / 1e6)
    features = round((arguments.train.nbytes + arguments.test.nbytes) / 1e6)
    return {**result, "features_mb": features, "peak_before_mb": before}


def peak_megabytes() -> int:
    """Return the largest memory that this process has had."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def make_data(arguments: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return training and test features `[N, width]` and labels of clusters that overlap."""
    generator = torch.Generator().manual_seed(0)
    width, classes, test = arguments.width, arguments.classes, arguments.samples // 10
    centers = torch.randn(classes, width, generator=generator)
    mixing = torch.randn(width, width, generator=generator) * (3 / width**0.5)
    features = torch.empty(arguments.samples + test, width)
    labels = torch.arange(len(features)) % classes
    for rows in torch.arange(len(features)).split(10_000):
        features[rows] = centers[labels[rows]] + torch.randn(len(rows), width, generator=generator) @ mixing
    return features[:-test], labels[:-test], features[-test:], labels[-test:]


def timed(run: Callable[[], Any]) -> tuple[Any, dict[str, Any]]:
    """Return what a function returns, its seconds, those of all cores (which other work changes less), and peak memory."""
    start, cores = time.perf_counter(), time.process_time()
    result = run()
    seconds = {"seconds": round(time.perf_counter() - start, 2), "core_seconds": round(time.process_time() - cores, 2)}
    return result, {**seconds, "peak_mb": peak_megabytes()}


def knn_sslkit(arguments: argparse.Namespace) -> dict[str, Any]:
    device = choose_device(arguments.device)[0]

    def run() -> Tensor:
        bank = unit_features(arguments.train, device)
        return count_votes(bank, arguments.labels.to(device), arguments.test, K, TEMPERATURE, arguments.classes)

    votes, cost = timed(run)
    return {**cost, "accuracy": accuracy(votes.argmax(dim=1), arguments)}


def knn_sklearn(arguments: argparse.Namespace) -> dict[str, Any]:
    from sklearn.neighbors import KNeighborsClassifier
    from sklearn.preprocessing import normalize

    def weights(distances: Any) -> Any:  # of unit vectors: cosine = 1 - distance² / 2
        return np.exp(-(distances**2) / (2 * TEMPERATURE))

    def run() -> Any:
        classifier = KNeighborsClassifier(K, algorithm="brute", weights=weights)
        classifier.fit(normalize(arguments.train.numpy()), arguments.labels.numpy())
        return classifier.predict(normalize(arguments.test.numpy()))

    predicted, cost = timed(run)
    return {**cost, "accuracy": accuracy(torch.from_numpy(predicted), arguments)}


def logreg_sslkit(arguments: argparse.Namespace) -> dict[str, Any]:
    device, evaluations = choose_device(arguments.device)[0], list[float]()

    def run() -> tuple[Standardized, Tensor]:
        data, labels = Standardized.of(arguments.train, device), arguments.labels.to(device)
        c, classes = arguments.c, arguments.classes
        return data, fit_linear(data, labels, classes, c, cross_entropy, ITERATIONS, report=evaluations.append)

    (data, weights), cost = timed(run)
    return {**cost, "evaluations": len(evaluations), **quality(weights, data, arguments)}


def logreg_sklearn(arguments: argparse.Namespace, tolerance: float | None = None) -> dict[str, Any]:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    def run() -> Any:
        classifier = LogisticRegression(C=arguments.c, tol=tolerance or arguments.tolerance, max_iter=10_000)
        features = StandardScaler().fit_transform(arguments.train.double().numpy())
        return classifier.fit(features, arguments.labels.numpy())

    fitted, cost = timed(run)
    weights = torch.from_numpy(np.concatenate([fitted.coef_.T, fitted.intercept_[None]]))
    data = Standardized.of(arguments.train, torch.device("cpu"))
    return {**cost, "iterations": int(fitted.n_iter_[0]), **quality(weights, data, arguments)}


def logreg_sklearn_default(arguments: argparse.Namespace) -> dict[str, Any]:
    return logreg_sklearn(arguments, tolerance=1e-4)


def quality(weights: Tensor, data: Standardized, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the objective in float64 of weights on the training part, and their accuracy on the test part."""
    weights = weights.cpu().double()
    mean, deviation = data.mean.cpu().double(), data.deviation.cpu().double()
    total = 0.0
    for features, labels in zip(arguments.train.split(5_000), arguments.labels.split(5_000), strict=True):
        scores = (features.double() - mean) / deviation @ weights[:-1] + weights[-1:]
        total += float(torch.nn.functional.cross_entropy(scores, labels, reduction="sum"))
    samples = len(arguments.train)
    objective = total / samples + float(weights[:-1].square().sum()) / (2 * arguments.c * samples)
    test = Standardized(arguments.test, data.mean, data.deviation, data.device)
    predicted = torch.cat([scores.argmax(dim=1).cpu() for scores in linear_scores(weights.to(data.device), test)])
    return {"objective": objective, "accuracy": accuracy(predicted, arguments)}


def accuracy(predicted: Tensor, arguments: argparse.Namespace) -> float:
    return float((predicted == arguments.test_labels).double().mean())


PARTS: dict[str, Part] = {
    "knn-sslkit": knn_sslkit,
    "knn-sklearn": knn_sklearn,
    "logreg-sslkit": logreg_sslkit,
    "logreg-sklearn-default": logreg_sklearn_default,
    "logreg-sklearn": logreg_sklearn,
}

if __name__ == "__main__":
    main()
