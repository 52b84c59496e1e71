"""`sslkit knn`: classify by the nearest training features."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.evaluation.session import Evaluation, Fitted, Layers, Result, classify, open_evaluation, settle
from sslkit.specs.evaluation import KnnSpec

_CHUNK = 2**26  # similarities that are in memory at once: 256 MB


_GROUP = 16


def knn(spec: KnnSpec) -> Result:
    """Evaluate a checkpoint by k-NN; everything `sslkit knn` does."""
    return knn_of(open_evaluation(spec), spec)


def knn_of(evaluation: Evaluation, spec: KnnSpec) -> Result:
    """Return the k-NN result of an evaluation that is open."""
    protocol, settings = settle(spec, spec.protocol)
    classes, device = len(evaluation.parts.classes), evaluation.models[0].encoder.device
    k, temperature, shots = settings["k"], settings["temperature"], settings["shots"]
    if shots is None and settings["seeds"] > 1:
        raise SslkitError(f"{spec.protocol} draws nothing", "give --shots, or leave it out", flag="seeds")

    def fit(layers: Layers, labels: Tensor, seed: int) -> Fitted:
        (features,) = layers.values()
        if shots is not None:
            rows = draw_shots(labels, shots, seed, evaluation.parts.classes)
            features, labels = features[rows], labels[rows]
        if k > len(features):
            raise SslkitError(f"{k} neighbors of {len(features)} training images", f"give 1 to {len(features)}", flag="k")
        bank, told = features.to(device), labels.to(device)

        def predict(shown: Layers) -> Tensor:
            (queries,) = shown.values()
            return votes(bank, told, queries.to(device), k, temperature, classes).cpu()

        return Fitted(predict, {}, len(features))

    return evaluation.result("knn", protocol, settings, classify(evaluation, fit, settings))


def draw_shots(labels: Tensor, shots: int, seed: int, classes: tuple[str, ...]) -> Tensor:
    """Return rows of `shots` training images of each class, drawn by the seed; raises SslkitError if one has fewer."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for label, name in enumerate(classes):
        members = (labels == label).nonzero()[:, 0]
        if len(members) < shots:
            raise SslkitError(f"{shots}, and class {name} has {len(members)} images", "give fewer", flag="shots")
        drawn.append(members[torch.randperm(len(members), generator=generator)[:shots]])
    return torch.cat(drawn)


def votes(train: Tensor, labels: Tensor, test: Tensor, k: int, temperature: float | None, classes: int) -> Tensor:
    """Return the votes `[M, classes]` for `test` `[M, D]` from `train` `[N, D]` with labels `[N]`.

    Each of the k nearest by cosine votes for its class with weight exp(cosine / temperature) (Wu et al., 2018,
    section 3.4), or with weight one (`temperature` None). Memory is bounded: queries come in chunks.
    """
    train, test = F.normalize(train.float(), dim=1), F.normalize(test.float(), dim=1)
    found = []
    with show_progress("neighbors", len(test)) as progress:
        for queries in test.split(chunk_of(len(train))):
            similarity, places = largest(queries @ train.T, k)
            # Relative to the nearest: the same winner, and exp never overflows.
            weights = torch.ones_like(similarity)
            if temperature is not None:
                weights = ((similarity - similarity[:, :1]) / temperature).exp()
            empty = torch.zeros(len(queries), classes, device=train.device)
            found.append(empty.scatter_add_(1, labels[places], weights))
            progress.advance(len(queries))
    return torch.cat(found)


def chunk_of(samples: int) -> int:
    """Return how many queries are compared with `samples` at once."""
    return max(1, _CHUNK // samples)


def largest(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k largest of each row of `[M, N]` and their places, largest first, as `topk` does but faster for a large N.

    The columns are dealt to groups of 16. All k lie in the k groups with the largest maxima: of any other group, k values
    outside are at least as large. Finding maxima reads memory in order, and only what is left has to be sorted.
    """
    rows, count = values.shape
    groups = count // _GROUP
    if groups < 2 * k:
        found = values.topk(k, dim=1)
        return found.values, found.indices
    dealt = values[:, : groups * _GROUP].view(rows, _GROUP, groups)
    best = dealt.amax(dim=1).topk(k, dim=1).indices[:, None].expand(-1, _GROUP, -1)
    places = best + groups * torch.arange(_GROUP, device=values.device)[:, None]
    rest = torch.arange(groups * _GROUP, count, device=values.device).expand(rows, -1)
    left = torch.cat([dealt.gather(2, best).flatten(1), values[:, groups * _GROUP :]], dim=1)
    found = left.topk(k, dim=1)
    return found.values, torch.cat([places.flatten(1), rest], dim=1).gather(1, found.indices)
