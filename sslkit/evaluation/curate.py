"""`sslkit curate`: which samples to keep: without near duplicates and outliers, and a balanced or diverse part of the rest."""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.console import show_progress
from sslkit.contract.errors import SslkitError
from sslkit.engine.checkpoint import read_model
from sslkit.engine.precision import choose_device
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.embed import label_text, read_samples
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.models import Model
from sslkit.evaluation.splits import evaluation_size, source_of
from sslkit.files import output_path, write_atomically
from sslkit.nn import kmeans
from sslkit.specs.use import CurateSpec

_CHUNK = 2**26  # similarities in memory
_MOST_CENTERS = 20_000  # that the diverse selection finds one after the other
DUPLICATE, OUTLIER, REST = "near duplicate", "outlier", "not chosen"


@dataclass(frozen=True)
class CurateResult:
    """The files that were written, and how many samples are kept, and left out for which reason."""

    path: str
    left_out_path: str
    samples: int
    kept: int
    left_out: dict[str, int]
    clusters: int
    checkpoint: str


def curate(spec: CurateSpec) -> CurateResult:
    """Write a table of the samples to keep, which `--data` takes, and one of those left out with the reason.

    Of data with train/ and test/, train is read. Raises SslkitError for samples that are no files.
    """
    out = output_path(spec.out, ".csv")
    left_out_path = out.with_name(f"{out.stem}.left-out.csv")
    checkpoint = read_model(spec.ckpt, part=spec.part)
    encoder = checkpoint.build_encoder(spec.encoder).to(choose_device(spec.device)[0])
    index = read_samples(spec, checkpoint)
    if index.array is not None or index.shards or index.pages is not None or index.cells is not None:
        raise SslkitError(f"samples of {index.source} are no files of their own", "a table lists files", flag="data")
    model = Model(str(spec.ckpt), encoder, evaluation_size(spec, checkpoint))
    samples = source_of(checkpoint).for_evaluation(index, spec, encoder, model.size)
    taken = cached_features(model, samples, spec.layer, spec.pool, spec)
    (features,) = taken.layers.values()
    features = F.normalize(features - features.mean(dim=0), dim=1).to(encoder.device)
    twin, cosine, typicality = compare_all(features, spec.duplicates, spec.neighbors)
    reason = np.full(len(features), "", dtype=object)
    reason[twin >= 0] = DUPLICATE
    rest = np.flatnonzero(twin < 0)
    lonely = rest[np.argsort(typicality[rest], kind="stable")][: round(spec.outliers * len(rest))]
    reason[lonely] = OUTLIER
    rest = np.flatnonzero(reason == "")
    seed_stage(spec.seed, "clusters", 0)
    number = min(spec.clusters, len(rest))
    clusters = np.full(len(features), -1)
    clusters[rest] = kmeans(features[torch.from_numpy(rest).to(features.device)], number).labels.cpu().numpy()
    chosen = rest[choose(features[torch.from_numpy(rest).to(features.device)], clusters[rest], spec)]
    reason[np.setdiff1d(rest, chosen)] = REST
    places = [os.path.join(index.root, index.paths[row]) for row in taken.rows]
    labels = None if index.labels is None else [label_text(index, int(row)) for row in taken.rows]
    head = ["path", *([] if labels is None else ["label"]), "cluster", "typicality"]
    kept = np.flatnonzero(reason == "")

    def entry(row: int) -> list[object]:
        return [places[row], *([] if labels is None else [labels[row]]), int(clusters[row]), round(float(typicality[row]), 4)]

    with write_atomically(out) as stream:
        stream.write(_table(head, [entry(row) for row in kept.tolist()]))
    rows = [
        [*entry(row), reason[row], places[twin[row]] if twin[row] >= 0 else "", round(float(cosine[row]), 4)]
        for row in np.flatnonzero(reason != "").tolist()
    ]
    with write_atomically(left_out_path) as stream:
        stream.write(_table([*head, "reason", "duplicate of", "cosine"], rows))
    left_out = dict(Counter(str(value) for value in reason if value))
    return CurateResult(str(out), str(left_out_path), len(features), len(kept), left_out, number, str(spec.ckpt))


def compare_all(
    features: Tensor, threshold: float, neighbors: int
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Compare all samples by unit features `[N, D]`.

    Returns the sample that each nearly equals, the most similar one of those before it that are kept, -1 if there is none;
    their cosine; and the mean cosine to the nearest neighbors, `[N]` each.
    """
    count = len(features)
    rows = max(1, _CHUNK // count)
    twin, nearest_kept, typicality = np.full(count, -1), np.zeros(count), np.empty(count)
    with show_progress("samples compared", count) as progress:
        for start in range(0, count, rows):
            cosine = features[start : start + rows] @ features.T
            height = len(cosine)
            place = torch.arange(start, start + height, device=features.device)
            cosine[torch.arange(height), place] = -2.0  # not itself
            nearest = cosine.topk(min(neighbors, count - 1), dim=1).values
            typicality[start : start + height] = nearest.mean(dim=1).double().cpu().numpy()
            similar = (cosine >= threshold) & (torch.arange(count, device=features.device) < place[:, None])
            pairs = similar.nonzero() if threshold < 1 else similar.new_zeros(0, 2, dtype=torch.int64)
            values = cosine[pairs[:, 0], pairs[:, 1]].double().cpu().tolist()
            for (row, other), value in zip(pairs.tolist(), values, strict=True):  # row by row, the first ones first
                if twin[other] < 0 and value > nearest_kept[start + row]:
                    twin[start + row], nearest_kept[start + row] = other, value
            progress.advance(height)
    return twin, nearest_kept, typicality


def choose(features: Tensor, clusters: NDArray[np.int64], spec: CurateSpec) -> NDArray[np.int64]:
    """Return the places of the share `--keep` of samples, in order, as `--select` says."""
    count, most = len(features), max(1, round(spec.keep * len(features)))
    if most >= count:
        return np.arange(count)
    random = np.random.default_rng(spec.seed)
    if spec.select == "random":
        return np.sort(random.permutation(count)[:most])
    if spec.select == "balanced":
        return np.sort(_balance(clusters, most, random))
    if most > _MOST_CENTERS:
        problem = f"{most:,} samples are too many to choose one after the other (at most {_MOST_CENTERS:,})"
        raise SslkitError(problem, "use --select balanced, or a smaller --keep", flag="keep")
    return np.sort(farthest(features, most))


def _balance(clusters: NDArray[np.int64], most: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Return as many places of each cluster as there are, at most an equal number of each, so that `most` are chosen."""
    members = [random.permutation(np.flatnonzero(clusters == number)) for number in np.unique(clusters)]
    sizes = np.array([len(rows) for rows in members])
    level = int(np.searchsorted([np.minimum(sizes, height).sum() for height in range(sizes.max() + 1)], most))
    taken = np.minimum(sizes, level)
    full = np.flatnonzero(sizes >= level)  # of which some give one back, so that the number is right
    taken[full[: int(taken.sum()) - most]] -= 1
    return np.concatenate([rows[:number] for rows, number in zip(members, taken, strict=True)])


def farthest(features: Tensor, most: int) -> NDArray[np.int64]:
    """Return places of unit features `[N, D]`: the most central one, then always the one farthest from all chosen ones.

    (Greedy k-center; Gonzalez, 1985; Sener & Savarese, 2018.)
    """
    place = int((features @ features.mean(dim=0)).argmax())
    chosen, nearest = [place], features @ features[place]
    with show_progress("samples chosen", most) as progress:
        for _ in range(most - 1):
            place = int(nearest.argmin())
            chosen.append(place)
            nearest = torch.maximum(nearest, features @ features[place])
            progress.advance(1)
    return np.array(chosen)


def _table(head: list[str], rows: list[list[object]]) -> bytes:
    """Return a table as the bytes of a .csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
