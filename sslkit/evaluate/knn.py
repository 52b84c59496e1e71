"""`sslkit knn`: classify by the nearest training features."""

from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import meter
from sslkit.errors import SslkitError
from sslkit.evaluate.data import Evaluation, Features, open_evaluation
from sslkit.specs import KnnSpec

PROTOCOLS = {"knn/weighted-v1": (20, 0.07), "knn/weighted200-v1": (200, 0.1)}


@dataclass(frozen=True)
class KnnResult:
    """Hold what `sslkit knn --json` prints; `top1` is a share of 1."""

    protocol: str | None
    top1: float
    k: int
    temperature: float
    n_train: int
    n_test: int
    test_seen_in_pretraining: bool
    checkpoint: str


def knn(spec: KnnSpec) -> KnnResult:
    """Evaluate a checkpoint by k-NN; everything `sslkit knn` does."""
    evaluation = open_evaluation(spec)
    result = knn_of(evaluation, spec, evaluation.features())
    evaluation.record({"command": "knn", **asdict(result)})
    return result


def knn_of(evaluation: Evaluation, spec: KnnSpec, features: Features) -> KnnResult:
    """Return the k-NN result of features under the spec's protocol."""
    k, temperature = PROTOCOLS[spec.protocol]
    by_hand = spec.k is not None or spec.temperature is not None
    k, temperature = spec.k or k, spec.temperature or temperature
    if k > len(features.train):
        raise SslkitError(f"--k: {k} neighbours of {len(features.train)} training images", "give a smaller --k")
    predicted = weighted_knn(
        features.train, features.train_labels, features.test, k, temperature, len(evaluation.parts.classes)
    )
    return KnnResult(
        protocol=None if by_hand else spec.protocol,
        top1=(predicted == features.test_labels).double().mean().item(),
        k=k,
        temperature=temperature,
        n_train=len(features.train),
        n_test=len(features.test),
        test_seen_in_pretraining=evaluation.parts.test_seen_in_pretraining,
        checkpoint=str(evaluation.checkpoint.path),
    )


def weighted_knn(
    train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float, classes: int, chunk: int = 1024
) -> Tensor:
    """Return predictions `[M]` for `test` `[M, D]` from `train` `[N, D]` with labels `[N]`.

    Each of the k nearest by cosine votes for its class with weight exp(cosine / temperature) (Wu et al., 2018,
    section 3.4). Memory grows with `chunk * N`.
    """
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    predictions = []
    with meter("neighbours", len(test)) as progress:
        for queries in test.split(chunk):
            predictions.append(_vote(train, labels, queries, k, temperature, classes))
            progress.advance(len(queries))
    return torch.cat(predictions)


def _vote(train: Tensor, labels: Tensor, queries: Tensor, k: int, temperature: float, classes: int) -> Tensor:
    similarity, nearest = (queries @ train.T).topk(k, dim=1)
    # Relative to the nearest: the same winner, and exp never overflows.
    weights = ((similarity - similarity[:, :1]) / temperature).exp()
    votes = torch.zeros(len(queries), classes).scatter_add_(1, labels[nearest], weights)
    return votes.argmax(dim=1)
