"""`sslkit curate`: which samples to keep: without near duplicates and outliers, and a balanced or diverse part of the rest."""

import csv
import io
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.data.index import Index
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.features import map_samples
from sslkit.engine.precision import choose_device, choose_machine
from sslkit.engine.seeds import seed_stage
from sslkit.evaluation.duplicates import Likeness, Neighbors, find_neighbors, find_twins, first_of_equals
from sslkit.evaluation.embed import label_text, read_samples
from sslkit.evaluation.features import cached_features
from sslkit.evaluation.label_errors import judge_labels
from sslkit.evaluation.models import Model
from sslkit.evaluation.splits import evaluation_size, source_of
from sslkit.files import output_path, write_atomically
from sslkit.nn import kmeans
from sslkit.nn.k_center import k_center
from sslkit.registry import load_modality
from sslkit.specs.use import CurateSpec

_COSINE = 0.98  # from which features are those of near duplicates, where content is not compared
_MOST_CENTERS = 20_000  # that the diverse selection finds one after the other
DUPLICATE, NEAR, LABEL, OUTLIER, REST = "duplicate", "near duplicate", "label", "outlier", "not chosen"


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
    table = _Samples(len(features))
    first = first_of_equals(taken.hashes)
    single = np.flatnonzero(first == np.arange(len(first)))  # of equal samples the first one, for all of them
    neighbors = find_neighbors(features[_on(features, single)], spec.neighbors)
    table.typicality = neighbors.cosines.double().mean(dim=1).numpy()[np.searchsorted(single, first)]
    if spec.duplicates != 1:
        table.leave_out(np.flatnonzero(first != np.arange(len(first))), DUPLICATE, first, np.ones(len(first)))
        threshold, likeness = _likeness(
            spec, checkpoint, index.subset(taken.rows[single]), model, features[_on(features, single)]
        )
        twin, alike = find_twins(neighbors, likeness, threshold)
        twins, values = np.full(len(features), -1), np.zeros(len(features))
        twins[single], values[single] = np.where(twin < 0, -1, single[twin]), alike
        table.leave_out(np.flatnonzero(twins >= 0), NEAR, twins, values)
    labels = None if index.labels is None else [label_text(index, int(row)) for row in taken.rows]
    if spec.label_errors:
        order, likeliest = _judge_labels(index, taken.rows[single], neighbors)
        left = single[order][table.reason[single[order]] == ""]
        doubtful = left[: round(spec.label_errors * len(left))]
        table.leave_out(doubtful, LABEL)
        suggested = dict(zip(single.tolist(), likeliest.tolist(), strict=True))
        table.suggested = {row: index.classes[suggested[row]] for row in doubtful.tolist()}
    rest = table.rest()
    table.leave_out(rest[np.argsort(table.typicality[rest], kind="stable")][: round(spec.outliers * len(rest))], OUTLIER)
    rest = table.rest()
    if not len(rest):
        raise SslkitError("nothing is left", "leave fewer samples out", flag="outliers")
    seed_stage(spec.seed, "clusters", 0)
    number = min(spec.clusters, len(rest))
    table.clusters[rest] = kmeans(features[_on(features, rest)], number).labels.cpu().numpy()
    chosen = rest[choose(features[_on(features, rest)], table.clusters[rest], spec)]
    table.leave_out(np.setdiff1d(rest, chosen), REST)
    places = [os.path.join(index.root, index.paths[row]) for row in taken.rows]
    table.write(out, left_out_path, places, labels)
    left_out = dict(Counter(str(value) for value in table.reason if value))
    return CurateResult(str(out), str(left_out_path), len(features), len(table.rest()), left_out, number, str(spec.ckpt))


class _Samples:
    """What is known of each sample: why it is left out, of which it is a copy, how typical it is, and its cluster."""

    def __init__(self, count: int) -> None:
        self.reason = np.full(count, "", dtype=object)
        self.twin, self.likeness = np.full(count, -1), np.zeros(count)
        self.typicality, self.clusters = np.zeros(count), np.full(count, -1)
        self.suggested: dict[int, str] = {}

    def leave_out(
        self,
        rows: NDArray[np.int64],
        reason: str,
        twin: NDArray[np.int64] | None = None,
        likeness: NDArray[np.float64] | None = None,
    ) -> None:
        """Leave samples out for a reason, as copies of others."""
        self.reason[rows] = reason
        if twin is not None and likeness is not None:
            self.twin[rows], self.likeness[rows] = twin[rows], likeness[rows]

    def rest(self) -> NDArray[np.int64]:
        """Return the samples that are not left out."""
        return np.flatnonzero(self.reason == "")

    def write(self, out: Path, left_out: Path, places: list[str], labels: list[str] | None) -> None:
        """Write both tables."""
        head = ["path", *([] if labels is None else ["label"]), "cluster", "typicality"]

        def entry(row: int) -> list[object]:
            known: list[object] = [places[row], *([] if labels is None else [labels[row]])]
            return [*known, int(self.clusters[row]), round(float(self.typicality[row]), 4)]

        with write_atomically(out) as stream:
            stream.write(_table(head, [entry(row) for row in self.rest().tolist()]))
        more = ["reason", "duplicate of", "likeness", *(["suggested label"] if self.suggested else [])]
        rows = []
        for row in np.flatnonzero(self.reason != "").tolist():
            twin = self.twin[row]
            copy = [places[twin], round(float(self.likeness[row]), 4)] if twin >= 0 else ["", ""]
            suggestion = [self.suggested.get(row, "")] if self.suggested else []
            rows.append([*entry(row), self.reason[row], *copy, *suggestion])
        with write_atomically(left_out) as stream:
            stream.write(_table([*head, *more], rows))


def _on(features: Tensor, rows: NDArray[np.int64]) -> Tensor:
    return torch.from_numpy(rows).to(features.device)


def _likeness(spec: CurateSpec, checkpoint: Checkpoint, index: Index, model: Model, features: Tensor) -> tuple[float, Likeness]:
    """Return from which likeness on samples are copies, and how alike those at places of `features` are.

    It is that of their content where the modality describes one, else, or if a threshold was named, the cosine of features.
    """
    modality = load_modality(checkpoint.evaluated_as)
    if spec.duplicates == "auto" and modality.copies_from is not None:
        samples = source_of(checkpoint).for_evaluation(index, spec, model.encoder, model.size)
        machine = choose_machine(spec.device)
        contents = map_samples(modality.content, samples, machine, spec.batch_size)

        def compare(ours: Tensor, theirs: Tensor) -> Tensor:
            return modality.likeness(contents[ours].to(machine.device), contents[theirs].to(machine.device)).cpu()

        return modality.copies_from, compare
    threshold = _COSINE if spec.duplicates == "auto" else float(spec.duplicates)
    return threshold, lambda ours, theirs: (features[ours] * features[theirs]).sum(dim=1).cpu()


def _judge_labels(index: Index, rows: NDArray[np.int64], neighbors: Neighbors) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return places in `rows`, the least plausible label first, and the likeliest other class of each; all need one label."""
    if index.labels is None or index.labels.ndim != 1 or (index.labels < 0).any() or len(index.classes) < 2:
        problem = f"{index.source} has one class, or samples without a label or with several"
        raise SslkitError(problem, "each needs one of several classes", flag="label_errors")
    order, _, likeliest = judge_labels(neighbors, index.labels[rows], len(index.classes))
    return order, likeliest


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
    """Return places of unit features `[N, D]`: the most central one, then always the one farthest from all chosen ones."""
    central = int((features @ features.mean(dim=0)).argmax())
    return k_center(features, most, central, "samples chosen").numpy()


def _table(head: list[str], rows: list[list[object]]) -> bytes:
    """Return a table as the bytes of a .csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    return text.getvalue().encode(errors="surrogateescape")
