"""`sslkit probe`: logistic regression on frozen features."""

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from sslkit.console import meter
from sslkit.errors import SslkitError
from sslkit.evaluate.data import Evaluation, Features, open_evaluation
from sslkit.specs import ProbeSpec

PROTOCOL = "probe/logreg-v1"
Advance = Callable[[], None]
_GRID = (0.001, 0.01, 0.1, 1.0, 10.0)
_HELD_OUT = 0.2
_ITERATIONS = 1000


@dataclass(frozen=True)
class ProbeResult:
    """Hold what `sslkit probe --json` prints; `top1` is a share of 1."""

    protocol: str | None
    top1: float
    c: float
    n_train: int
    n_test: int
    test_seen_in_pretraining: bool
    checkpoint: str


def probe(spec: ProbeSpec) -> ProbeResult:
    """Evaluate a checkpoint by a linear probe; everything `sslkit probe` does."""
    evaluation = open_evaluation(spec)
    result = probe_of(evaluation, spec, evaluation.features())
    evaluation.record({"command": "probe", **asdict(result)})
    return result


def probe_of(evaluation: Evaluation, spec: ProbeSpec, features: Features) -> ProbeResult:
    """Return the probe's result on features: C chosen on a held-out slice of the training part, then fitted on all of it."""
    train, train_labels = features.train.double().numpy(), features.train_labels.numpy()
    test, test_labels = features.test.double().numpy(), features.test_labels.numpy()
    mean, deviation = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, test = (train - mean) / deviation, (test - mean) / deviation
    with meter("fitting", 1 if spec.c else len(_GRID) + 1) as progress:
        c = spec.c or choose_c(train, train_labels, spec.seed, progress.advance)
        top1 = _accuracy(train, train_labels, test, test_labels, c)
        progress.advance()
    return ProbeResult(
        protocol=None if spec.c else PROTOCOL,
        top1=top1,
        c=c,
        n_train=len(train),
        n_test=len(test),
        test_seen_in_pretraining=evaluation.parts.test_seen_in_pretraining,
        checkpoint=str(evaluation.checkpoint.path),
    )


def choose_c(features: NDArray[np.float64], labels: NDArray[np.int64], seed: int, advance: Advance = lambda: None) -> float:
    """Return the C of the grid that does best on a stratified slice held out of the training part."""
    from sklearn.model_selection import train_test_split

    try:
        kept, held_out, kept_labels, held_labels = train_test_split(
            features, labels, test_size=_HELD_OUT, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise SslkitError(
            f"--data: {len(labels)} training images are too few to hold some of each class out: {error}"
        ) from error
    accuracies = []
    for c in _GRID:
        accuracies.append(_accuracy(kept, kept_labels, held_out, held_labels, c))
        advance()
    return _GRID[int(np.argmax(accuracies))]


def _accuracy(
    train: NDArray[np.float64],
    labels: NDArray[np.int64],
    test: NDArray[np.float64],
    test_labels: NDArray[np.int64],
    c: float,
) -> float:
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        # A thousand iterations of L-BFGS are the protocol; whether the last digits settled changes no accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=c, max_iter=_ITERATIONS).fit(train, labels)
    return float((model.predict(test) == test_labels).mean())
