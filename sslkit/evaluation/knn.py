"""`sslkit knn`: classify by the nearest training features."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.contract.evaluation import Protocol
from sslkit.contract.result import Result
from sslkit.evaluation.session import (
    EvaluationSession,
    FeatureEvaluation,
    Layers,
    Predictor,
    Settings,
    TrainingView,
    resolve_protocol,
)
from sslkit.specs.evaluation import KnnSpec

_CHUNK = 2**26  # similarities in memory at once: 256 MB


_GROUP = 16


class Knn(FeatureEvaluation):
    """Classify by the nearest training features of a frozen encoder."""

    classifies = True
    verb = "knn"
    Options = KnnSpec
    by_distance = True
    protocols = (
        Protocol(
            "knn/weighted-v1",
            "the 20 nearest by cosine vote with weight exp(cosine / 0.07) (Wu et al., 2018)",
            {"k": 20, "temperature": 0.07, "shots": None, "seeds": 1},
            deterministic=True,
        ),
        Protocol(
            "knn/weighted200-v1",
            "the 200 nearest by cosine vote with weight exp(cosine / 0.1)",
            {"k": 200, "temperature": 0.1, "shots": None, "seeds": 1},
            deterministic=True,
        ),
        Protocol(
            "knn/plain-v1",
            "the 20 nearest by cosine have a vote each; the first class wins a tie",
            {"k": 20, "temperature": None, "shots": None, "seeds": 1},
            deterministic=True,
        ),
        Protocol(
            "knn/chosen-layer-v1",
            "as knn/weighted-v1, on the layer chosen on a fifth of the training part",
            {"k": 20, "temperature": 0.07, "shots": None, "seeds": 1, "layer": "auto"},
        ),
        Protocol(
            "knn/fewshot-v1",
            "5 training samples per class; the 5 nearest vote with weight exp(cosine / 0.07); mean of 10 draws",
            {"k": 5, "temperature": 0.07, "shots": 5, "seeds": 10},
        ),
    )

    def resolve(self, spec: Any, session: EvaluationSession) -> tuple[str | None, Settings]:
        """Return the protocol's id and the settings; several seeds without shots are an SslkitError."""
        protocol, settings = resolve_protocol(self, spec)
        if settings["shots"] is None and settings["seeds"] > 1:
            raise SslkitError(f"{spec.protocol} does not depend on the seed", "set --shots, or leave --seeds out", flag="seeds")
        return protocol, settings

    def fit(self, train: TrainingView, settings: Settings, seed: int) -> Predictor:
        """Return the training features, or a few of each class drawn by the seed, ready to vote."""
        features, labels, k = train.features, train.labels, settings["k"]
        if settings["shots"] is not None:
            rows = draw_shots(labels, settings["shots"], seed, train.classes)
            features, labels = features[rows], labels[rows]
        if k > len(features):
            raise SslkitError(f"{k} exceeds the {len(features)} training samples", f"use at most {len(features)}", flag="k")
        bank = unit_features(features, train.device)
        return Neighbors(bank, labels.to(train.device), k, settings["temperature"], len(train.classes))


class Neighbors(Predictor):
    """Training features `[N, D]` of length 1 and labels `[N]` that vote."""

    def __init__(self, bank: Tensor, labels: Tensor, k: int, temperature: float | None, classes: int) -> None:
        self.bank, self.labels, self.k, self.temperature, self.classes = bank, labels, k, temperature, classes
        self.n_train = len(bank)

    def scores(self, layers: Layers) -> Tensor:
        """Return the votes `[M, classes]`."""
        (queries,) = layers.values()
        return count_votes(self.bank, self.labels, queries, self.k, self.temperature, self.classes)


def knn(spec: KnnSpec) -> Result:
    """Evaluate a checkpoint by k-NN, as `sslkit knn` does."""
    return Knn().run(spec)


def draw_shots(labels: Tensor, shots: int, seed: int, classes: tuple[str, ...]) -> Tensor:
    """Return rows of `shots` training samples of each class, drawn by the seed; raises SslkitError if a class has fewer."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for label, name in enumerate(classes):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < shots:
            raise SslkitError(
                f"{shots} exceeds the {len(members)} training samples of class {name}",
                f"use at most {len(members)}",
                flag="shots",
            )
        rows.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(rows)


def votes(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float | None, classes: int) -> Tensor:
    """Return the votes `[M, classes]` for `test` `[M, D]` from `train` `[N, D]` with labels `[N]`; see `count_votes`."""
    return count_votes(unit_features(train, train.device), labels, test, k, temperature, classes)


def unit_features(features: Tensor, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return a copy of features `[N, D]` on the device, each of length 1."""
    unit = features.to(device, dtype, copy=True)
    return F.normalize(unit, dim=1, out=unit)


def count_votes(bank: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float | None, classes: int) -> Tensor:
    """Return the votes `[M, classes]`, on the CPU, for `test` `[M, D]` from a bank `[N, D]` of unit features with labels `[N]`.

    Each of the k nearest by cosine votes for its class with weight exp(cosine / temperature) (Wu et al., 2018,
    section 3.4), or with weight one (`temperature` None). Memory is bounded: queries come to the bank's device in chunks.
    """
    chunks = []
    with show_progress("neighbors", len(test)) as progress:
        for part in test.split(chunk_of(len(bank))):
            queries = unit_features(part, bank.device)
            similarity, places = largest(queries @ bank.T, k)
            chunks.append(tally(labels[places], similarity, temperature, classes).cpu())
            progress.advance(len(queries))
    return torch.cat(chunks)


def tally(labels: Tensor, cosines: Tensor, temperature: float | None, classes: int) -> Tensor:
    """Return the votes `[M, classes]` of neighbors with labels and cosines `[M, k]`, nearest first."""
    # Relative to the nearest: the same winner, and exp never overflows.
    weights = torch.ones_like(cosines) if temperature is None else ((cosines - cosines[:, :1]) / temperature).exp()
    return torch.zeros(len(labels), classes, device=labels.device).scatter_add_(1, labels, weights)


def chunk_of(samples: int) -> int:
    """Return how many queries are compared with `samples` at once."""
    return max(1, _CHUNK // samples)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row of `[M, N]` and their places, largest first, as `topk` does but faster for a large N.

    The columns are divided into groups of 16. All k lie in the k groups with the largest maxima: of any other group, k values
    outside are at least as large. Finding maxima reads memory in order, and only what is left has to be sorted.
    """
    rows, count = values.shape
    groups = count // _GROUP
    if groups < 2 * k:
        top = values.topk(k, dim=1)
        return top.values, top.indices
    grouped = values[:, : groups * _GROUP].view(rows, _GROUP, groups)
    best = grouped.amax(dim=1).topk(k, dim=1).indices[:, None].expand(-1, _GROUP, -1)
    places = best + groups * torch.arange(_GROUP, device=values.device)[:, None]
    rest = torch.arange(groups * _GROUP, count, device=values.device).expand(rows, -1)
    candidates = torch.cat([grouped.gather(2, best).flatten(1), values[:, groups * _GROUP :]], dim=1)
    top = candidates.topk(k, dim=1)
    return top.values, torch.cat([places.flatten(1), rest], dim=1).gather(1, top.indices)
