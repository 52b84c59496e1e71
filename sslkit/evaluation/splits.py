"""Labeled training and test parts for an evaluation."""

import dataclasses
import re
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sslkit.console import say_once
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.modality import FileKind
from sslkit.contract.source import Rows
from sslkit.data.index import Index
from sslkit.data.indexed_source import LABEL_SOURCES, IndexedSource
from sslkit.data.locations import absolute_data, find_parts
from sslkit.data.tables import read_columns
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.run_folder import holds_run, read_spec
from sslkit.evaluation.shared_names import note_shared_names
from sslkit.registry import load_modality
from sslkit.specs.data import ANNOTATIONS, MAIN_PART, DataSpec, ModalitySpec

S = TypeVar("S", bound=DataSpec)


TEST_SHARE = 0.2  # where there is no test part


@dataclass(frozen=True)
class TestPart:
    """Samples used once, to test; labels count in the training part's classes."""

    name: str
    index: Index
    seen_in_pretraining: bool


@dataclass(frozen=True)
class Parts:
    """The labeled parts of the data."""

    train: Index
    tests: list[TestPart]
    data: str  # their location
    annotations: dict[str, Any]  # where labels and groups come from, by flag
    fingerprint: str  # of the training part, before a test part was split off
    recorded: dict[str, Any]  # data options that were not set, and come from the checkpoint or its run

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return self.train.classes


def find_labeled(
    spec: DataSpec,
    tests: list[str],
    checkpoint: Checkpoint | None,
    several: bool = False,
    source_class: type[IndexedSource] | None = None,
) -> Parts:
    """Return labeled training and test parts, and print where each test part comes from.

    Without `--data` they are those of the run beside the checkpoint, whose fingerprint has to match. Without a test
    part, a fifth of each class is split off by the seed. `several` labels per sample are for fine-tuning only.
    `source_class` reads them; by default the source that the checkpoint is evaluated on.
    """
    requested = spec.data_values()
    data, from_run, spec = named_data(spec, checkpoint)
    recorded = {name: value for name, value in spec.data_values().items() if name not in requested}
    if source_class is None:
        assert checkpoint is not None
        source_class = source_of(checkpoint)
    located = find_parts(data, source_class.kind)
    train = source_class.read_index(located.pop("train"), spec)
    check_labeled(train, "data", several, split=not tests and not located)
    pretrained_on = checkpoint.metadata["data"] if checkpoint else None
    if checkpoint is not None:
        check_channels(train, checkpoint)
    fingerprint = train.fingerprint()
    pretrained = fingerprint == pretrained_on
    check_run_data(data, from_run, pretrained)
    locations = [(test, *test_location(test, source_class.kind)) for test in tests]
    if not locations and located:
        locations = [(data, *next(iter(located.items())))]
    parts = []
    for holder, name, location in locations:
        with renamed_flags({"data": "test" if tests else "data"}):
            part = map_classes(check_labeled(source_class.read_index(location, spec), "data", several, split=False), train)
        name = holder if location == holder else f"{name} of {holder}"
        check_groups(train, part, "test" if tests else "data")
        say_once(f"test part: {name}")
        parts.append(TestPart(name, part, part.fingerprint() == pretrained_on))
    if not parts:
        suffix = "; seen in pretraining" if pretrained else ""
        if pretrained and checkpoint is not None:
            _check_labels_seen(checkpoint, spec.seed)
        kept, held_out = held_out_rows(train.labels, spec.seed, train.classes, TEST_SHARE, train.groups)
        description = f"a fifth of each class of {data}, drawn by --seed {spec.seed}{suffix}"
        if train.groups is not None:
            groups = f"{len(np.unique(train.groups[held_out])):,} of {len(train.group_names):,} groups"
            description = f"{groups} of {data}, about a fifth of each class, drawn by --seed {spec.seed}{suffix}"
        say_once(f"test part: {description}")
        parts = [TestPart(f"a fifth of {data}", train.subset(held_out), pretrained)]
        train = train.subset(kept)
    if source_class.kind.grouped:
        note_shared_names(train, parts[0].index)
    return Parts(train, parts, data, annotations(spec), fingerprint, recorded)


def _check_labels_seen(checkpoint: Checkpoint, seed: int) -> None:
    """Raise SslkitError if the samples to be held out by a seed are others than those whose labels pretraining did not see."""
    hidden_by = checkpoint.metadata.get("labels_held_out")
    if "labeled" in checkpoint.metadata and hidden_by != seed:
        of_run = "" if hidden_by is None else f"use --seed {hidden_by}, that of the run, or "
        raise SslkitError(
            f"{seed} holds out samples whose labels {checkpoint.path} was trained on",
            f"{of_run}name a --test part",
            flag="seed",
        )


def check_run_data(data: str, from_run: bool, unchanged: bool) -> None:
    """Raise SslkitError if the run's data, which the user did not name, has changed since the run."""
    if from_run and not unchanged:
        raise SslkitError(f"{data} has changed since the run", "name it with --data to evaluate on it anyway", flag="data")


def source_of(checkpoint: Checkpoint, flag: str = "ckpt") -> type[IndexedSource]:
    """Return the source of the samples that a checkpoint is evaluated on; raises SslkitError if they cannot be labeled."""
    modality = load_modality(checkpoint.evaluated_as)
    if checkpoint.modality not in modality.encodes:
        raise SslkitError(
            f"{checkpoint.path} encodes {checkpoint.modality} data, but its metadata claims training on {modality.name} data",
            "the file was altered",
            flag=flag,
        )
    if not issubclass(modality.source, IndexedSource):
        problem = f"{checkpoint.path} was trained on {modality.name} data by {checkpoint.metadata['task']}"
        if checkpoint.part_name != MAIN_PART:
            problem = f"the part {checkpoint.part_name} of {checkpoint.path} encodes {modality.name} data"
        raise SslkitError(problem, f"{modality.noun} have no labels", flag=flag)
    return modality.source


def evaluation_size(spec: ModalitySpec, checkpoint: Checkpoint) -> int:
    """Return the size of the encoder's samples: the user's, by default that of pretraining.

    Raises SslkitError for a data option of another modality.
    """
    spec.check_modality(checkpoint.evaluated_as)
    return spec.sample_size(checkpoint.evaluated_as) or checkpoint.size


def check_channels(index: Index, checkpoint: Checkpoint) -> None:
    """Raise SslkitError if samples do not have the channels that the encoder takes."""
    channels = source_of(checkpoint).channels(index)
    if channels not in (None, checkpoint.channels):
        raise SslkitError(f"images have {channels} channels, the encoder takes {checkpoint.channels}", flag="data")


def annotations(spec: DataSpec) -> dict[str, Any]:
    """Return where labels and groups come from, by flag: the column of labels, and what else was named."""
    values = {name: getattr(spec, name) for name in ANNOTATIONS}
    return {name: value for name, value in values.items() if value is not None or name == "label"}


def named_data(spec: S, checkpoint: Checkpoint | None) -> tuple[str, bool, S]:
    """Return `--data`, by default that of the run beside the checkpoint, and whether it comes from the run.

    The spec comes back with the data options that are the checkpoint's: how pixels are scaled, say; of the run's data also
    with its labels and groups, unless others are named.
    """
    if checkpoint is not None:
        spec = spec.with_recorded(checkpoint.metadata.get("spec"), same_data=False)
    folder = None if checkpoint is None else Path(checkpoint.path).parent
    recorded = read_spec(folder) if folder is not None and holds_run(folder) else {}
    named, data = spec.data, recorded.get("data")
    if named is not None:
        return named, False, _with_run(spec, recorded) if absolute_data(named) == data else spec
    if checkpoint is None:
        raise SslkitError("missing", "name labeled data: class subfolders, or a .csv with --label", flag="data")
    if not checkpoint.metadata["data"]:
        raise SslkitError(
            f"missing: {checkpoint.part_name} encodes {checkpoint.modality} data, unlike the run", "name the data", flag="data"
        )
    if not recorded:
        raise SslkitError(f"missing, and {folder} holds no run that names it", "name the data", flag="data")
    if not isinstance(data, str):
        raise SslkitError(f"missing, and the run in {folder} names none", flag="data")
    return data, True, _with_run(spec, recorded)


def _with_run(spec: S, recorded: dict[str, Any]) -> S:
    """Return the spec of an evaluation of a run's own data: with its labels and groups, unless others are named."""
    spec = spec.with_recorded(recorded, same_data=True)
    for column, pattern in (("label", "label_pattern"), ("group", "group_pattern")):
        if getattr(spec, column) is None and getattr(spec, pattern) is None:
            values = {name: recorded.get(name) for name in (column, pattern)}
            spec = spec.updated({name: value for name, value in values.items() if isinstance(value, str)})
    return spec


def draw_held_out(count: int, share: float, seed: int) -> NDArray[np.bool_]:
    """Return which of so many units are held out, `[count]`: a share of them, at least one and not all, drawn by the seed."""
    chosen = np.zeros(count, dtype=np.bool_)
    chosen[np.random.default_rng(seed).permutation(count)[: min(max(1, round(share * count)), count - 1)]] = True
    return chosen


def held_out_rows(
    labels: np.ndarray | None, seed: int, classes: tuple[str, ...], share: float, groups: Rows | None = None
) -> tuple[Rows, Rows]:
    """Return the rows to keep and to hold out: `share` of each class, at least one and not all, drawn by the seed.

    Labels are int64 `[N]`; of samples with several labels (`[N, classes]`) a share of all is drawn. Of `groups` `[N]`, whole
    ones are held out, about that share of each class.
    """
    assert labels is not None
    if groups is not None:
        return _held_out_groups(labels, groups, seed, classes, share)
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.zeros(len(labels), dtype=bool)
    by_class = [order]
    if labels.ndim == 1:
        by_class = [order[labels[order] == label] for label in np.unique(labels)]
    for members in by_class:
        if len(members) < 2:
            name = classes[labels[members[0]]]
            raise SslkitError(f"class {name} has one sample", "a part of each class is held out, which needs two", flag="data")
        chosen[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _held_out_groups(labels: np.ndarray, groups: Rows, seed: int, classes: tuple[str, ...], share: float) -> tuple[Rows, Rows]:
    """Return the rows to keep and to hold out, no group among both.

    Groups are taken in an order drawn by the seed, each if it brings what is held out closer to `share` of every class; then
    for a class of which nothing is held out yet, the group that departs least from that.
    """
    counts = np.zeros((groups.max() + 1, len(classes)), dtype=np.int64)  # samples of each class in each group
    if labels.ndim == 2:
        np.add.at(counts, groups, labels)
    else:
        np.add.at(counts, (groups, labels), 1)
    total = counts.sum(axis=0)
    held_out, chosen = np.zeros(len(classes), dtype=np.int64), np.zeros(len(counts), dtype=bool)
    order = np.random.default_rng(seed).permutation(np.unique(groups))

    def distance(held_out: Rows) -> float:
        kept_all = (held_out < total)[total > 0].all()
        return float(np.square(held_out - share * total).sum()) if kept_all else np.inf

    for group in order:
        if distance(held_out + counts[group]) < distance(held_out):
            held_out, chosen[group] = held_out + counts[group], True
    for place in np.flatnonzero(total):
        if not held_out[place]:
            candidates = [group for group in order if counts[group, place]]
            group = candidates[int(np.argmin([distance(held_out + counts[group]) for group in candidates]))]
            if distance(held_out + counts[group]) == np.inf:
                raise SslkitError(
                    f"no group can be held out so that class {classes[place]} is in both parts",
                    "each class needs two groups or more; or name a --test part",
                    flag="group",
                )
            held_out, chosen[group] = held_out + counts[group], True
    return np.flatnonzero(~chosen[groups]), np.flatnonzero(chosen[groups])


def check_groups(train: Index, test: Index, flag: str) -> None:
    """Raise SslkitError if a group is in both parts."""
    both = sorted(set(train.group_names) & set(test.group_names))
    if both:
        raise SslkitError(
            f"{test.source} shares {len(both):,} groups with the training part, such as {both[0]}",
            "a group belongs to one part",
            flag=flag,
        )


def test_location(test: str, kind: FileKind) -> tuple[str, str]:
    """Return name and location of the test part of what `--test` names: not its training part, if it has several parts."""
    with renamed_flags({"data": "test"}):
        located = find_parts(test, kind)
    if len(located) > 1:
        del located["train"]
    return next(iter(located.items()))


def labeled_fingerprint(index: Index) -> str:
    """Return a hash of samples, classes and labels."""
    assert index.labels is not None
    digest = blake2b(index.fingerprint().encode(), digest_size=8)
    digest.update("\0".join(index.classes).encode(errors="surrogateescape"))
    digest.update(index.labels.tobytes())
    return digest.hexdigest()


def check_labeled(index: Index, flag: str, several: bool, split: bool = True) -> Index:
    """Return the index; raises SslkitError, naming the flag, if an evaluation cannot use its labels.

    Data to `split`, or to fit and test on, needs two samples of each class.
    """
    if index.labels is None:
        hint = LABEL_SOURCES
        if index.source.lower().endswith((".csv", ".tsv")):
            hint = f"name a column with --label; columns: {', '.join(read_columns(Path(index.source)))}"
        raise SslkitError(f"{index.source} has no labels", hint, flag=flag)
    unlabeled = [index.name(int(row)) for row in np.flatnonzero(index.labels < 0)]
    beside_folders = unlabeled and "/" not in unlabeled[0] and any("/" in path for path in index.paths)
    if unlabeled and beside_folders and Path(index.source).is_dir():
        some = f"{unlabeled[0]} lies" if len(unlabeled) == 1 else f"{len(unlabeled):,} files, such as {unlabeled[0]}, lie"
        hint = "move it into one" if len(unlabeled) == 1 else "move them"
        raise SslkitError(f"{some} beside the class folders of {index.source}", hint, flag=flag)
    if unlabeled:
        some = f"{unlabeled[0]} has" if len(unlabeled) == 1 else f"{len(unlabeled):,} samples, such as {unlabeled[0]}, have"
        raise SslkitError(f"{some} no label in {index.source}", "an evaluation needs all labels", flag=flag)
    if len(index.classes) < 2:
        raise SslkitError(f"{index.source} has only one class ({index.classes[0]})", "at least two are needed", flag=flag)
    if index.labels.ndim == 2 and not several:
        raise SslkitError(f"{index.source} has several labels per sample", "only finetune accepts them", flag=flag)
    if flag == "data" and split and index.labels.ndim == 1:
        counts = np.bincount(index.labels, minlength=len(index.classes))
        if counts.min() < 2:
            name = index.classes[int(counts.argmin())]
            numbers = re.fullmatch(r"-?\d+\.\d+", name)
            raise SslkitError(
                f"class {name} of {index.source} has one sample",
                "at least two are needed; `sslkit regress` predicts numbers" if numbers else "at least two are needed",
                flag=flag,
            )
    return index


def map_classes(test: Index, train: Index) -> Index:
    """Return the test index with labels that count in the training part's classes."""
    assert test.labels is not None and train.labels is not None
    if test.channels != train.channels:
        raise SslkitError(
            f"samples of {test.source} have {test.channels} channels, those of --data {train.channels}", flag="test"
        )
    places = {name: place for place, name in enumerate(train.classes)}
    unknown = [name for name in test.classes if name not in places]
    if unknown:
        raise SslkitError(f"{test.source} has classes that the training part lacks: {', '.join(unknown[:5])}", flag="test")
    mapping = np.array([places[name] for name in test.classes], dtype=np.int64)
    if train.labels.ndim == 1 and test.labels.ndim == 2:
        raise SslkitError(f"{test.source} has several labels per sample, the training part one", flag="test")
    if train.labels.ndim == 1:
        return dataclasses.replace(test, labels=mapping[test.labels], classes=train.classes)
    several = np.zeros((len(test), len(train.classes)), dtype=np.int64)
    if test.labels.ndim == 1:
        several[np.arange(len(test)), mapping[test.labels]] = 1
    else:
        several[:, mapping] = test.labels
    return dataclasses.replace(test, labels=several, classes=train.classes)
