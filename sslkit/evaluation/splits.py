"""Labeled training and test parts for an evaluation."""

import dataclasses
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from sslkit.console import say
from sslkit.contract.errors import SslkitError, renamed_flags
from sslkit.contract.modality import FileKind
from sslkit.contract.source import Rows
from sslkit.data.index import Index
from sslkit.data.indexed_source import IndexedSource
from sslkit.data.locations import find_parts
from sslkit.engine.checkpoint import Checkpoint
from sslkit.engine.run_folder import holds_run, read_spec
from sslkit.registry import load_modality
from sslkit.specs.data import DataSpec, ModalitySpec

_TEST_SHARE = 0.2  # where there is no test part


@dataclass(frozen=True)
class TestPart:
    """Hold images that are looked at once; labels count in the training part's classes."""

    name: str
    index: Index
    seen_in_pretraining: bool


@dataclass(frozen=True)
class Parts:
    """Hold the labeled parts of the data."""

    train: Index
    tests: list[TestPart]
    data: str  # where they come from
    label: str | None
    fingerprint: str  # of the training part, before any of it was split off

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return self.train.classes

    def hashes(self) -> dict[str, str | list[str]]:
        """Return hashes of the images and labels of the training part, and of each test part."""
        return {"train": _hash(self.train), "test": [_hash(test.index) for test in self.tests]}


def find_labeled(
    spec: DataSpec,
    tests: list[str],
    checkpoint: Checkpoint | None,
    several: bool = False,
    source_class: type[IndexedSource] | None = None,
) -> Parts:
    """Return labeled training and test parts, and print where each test part comes from.

    Without `--data` they are those of the run beside the checkpoint, whose fingerprint has to match. Without a test
    part, a fifth of each class is split off by the seed. `several` labels per image are for fine-tuning only.
    `source_class` reads them; by default what the checkpoint is evaluated on.
    """
    data, label, own = named_data(spec, checkpoint)
    if source_class is None:
        assert checkpoint is not None
        source_class = source_of(checkpoint)
    located = find_parts(data, source_class.kind)
    train = check_labeled(source_class.read_index(located.pop("train"), label, spec.reindex), "data", several)
    pretrained_on = checkpoint.metadata["data"] if checkpoint else None
    if checkpoint is not None:
        check_channels(train, checkpoint)
    fingerprint = train.fingerprint()
    seen = fingerprint == pretrained_on
    check_own(data, own, seen)
    found = [(test, *_test_location(test, source_class.kind)) for test in tests]
    if not found and located:
        found = [(data, *next(iter(located.items())))]
    parts = []
    for holder, name, location in found:
        with renamed_flags({"data": "test" if tests else "data"}):
            part = _in_classes(check_labeled(source_class.read_index(location, label, spec.reindex), "test", several), train)
        name = holder if location == holder else f"{name} of {holder}"
        say(f"test part: {name}")
        parts.append(TestPart(name, part, part.fingerprint() == pretrained_on))
    if not parts:
        say(f"test part: a fifth of each class of {data}, drawn by --seed {spec.seed}{', seen in pretraining' if seen else ''}")
        kept, held_out = held_out_rows(train.labels, spec.seed, train.classes, _TEST_SHARE)
        parts = [TestPart(f"a fifth of {data}", train.subset(held_out), seen)]
        train = train.subset(kept)
    return Parts(train, parts, data, label, fingerprint)


def check_own(data: str, own: bool, seen: bool) -> None:
    """Raise SslkitError if data that nobody named, but the run, is not what the run has seen."""
    if own and not seen:
        raise SslkitError(
            f"{data} is no longer what the run saw", "name it with --data to evaluate on it all the same", flag="data"
        )


def source_of(checkpoint: Checkpoint, flag: str = "ckpt") -> type[IndexedSource]:
    """Return what reads the samples that a checkpoint is evaluated on; raises SslkitError if they cannot be labeled."""
    modality = load_modality(checkpoint.evaluated_as)
    if checkpoint.modality != modality.encoder_modality:
        raise SslkitError(
            f"{checkpoint.path} says it encodes {checkpoint.modality} data and was trained on {modality.name} data",
            "the file was altered",
            flag=flag,
        )
    if not issubclass(modality.source, IndexedSource):
        task = checkpoint.metadata["task"]
        raise SslkitError(
            f"{checkpoint.path} was trained on {modality.name} data by {task}", f"{modality.noun} have no labels", flag=flag
        )
    return modality.source


def evaluation_size(spec: ModalitySpec, checkpoint: Checkpoint) -> int:
    """Return the size of samples that the encoder is given: as asked for, by default that of pretraining.

    Raises SslkitError for a data option of another modality.
    """
    spec.check_modality(checkpoint.evaluated_as)
    return spec.sample_size(checkpoint.evaluated_as) or checkpoint.size


def check_channels(index: Index, checkpoint: Checkpoint) -> None:
    """Raise SslkitError if samples do not have the channels that the encoder takes."""
    channels = source_of(checkpoint).channels(index)
    if channels not in (None, checkpoint.channels):
        raise SslkitError(f"images have {channels} channels, the encoder takes {checkpoint.channels}", flag="data")


def named_data(spec: DataSpec, checkpoint: Checkpoint | None) -> tuple[str, str | None, bool]:
    """Return `--data` and `--label`, by default those of the run beside the checkpoint, and whether they are its own."""
    if spec.data is not None:
        return spec.data, spec.label, False
    if checkpoint is None:
        raise SslkitError("missing", "give labeled images: class subfolders, or a .csv with --label", flag="data")
    folder = Path(checkpoint.path).parent
    if not holds_run(folder):
        raise SslkitError(f"missing, and {folder} holds no run that would name it", "give the images", flag="data")
    recorded = read_spec(folder)
    data, label = recorded.get("data"), recorded.get("label")
    if not isinstance(data, str):
        raise SslkitError(f"missing, and the run in {folder} names none", flag="data")
    return data, spec.label or (label if isinstance(label, str) else None), True


def held_out_rows(labels: np.ndarray | None, seed: int, classes: tuple[str, ...], share: float) -> tuple[Rows, Rows]:
    """Return the rows to keep and to hold out: `share` of each class, at least one and not all, drawn by the seed.

    Labels are int64 `[N]`; of samples with several labels (`[N, classes]`) a share of all is drawn.
    """
    assert labels is not None
    order = np.random.default_rng(seed).permutation(len(labels))
    chosen = np.zeros(len(labels), dtype=bool)
    groups = [order]
    if labels.ndim == 1:
        groups = [order[labels[order] == label] for label in np.unique(labels)]
    for members in groups:
        if len(members) < 2:
            name = classes[labels[members[0]]]
            raise SslkitError(f"class {name} has one image", "a split needs two; or give a test part with --test", flag="data")
        chosen[members[: min(max(1, round(share * len(members))), len(members) - 1)]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)


def _test_location(test: str, kind: FileKind) -> tuple[str, str]:
    """Return the name and the place of the test part in what `--test` names: not its training part, if it has several."""
    with renamed_flags({"data": "test"}):
        located = find_parts(test, kind)
    if len(located) > 1:
        del located["train"]
    return next(iter(located.items()))


def _hash(index: Index) -> str:
    assert index.labels is not None
    digest = blake2b(index.fingerprint().encode(), digest_size=8)
    digest.update("\0".join(index.classes).encode(errors="surrogateescape"))
    digest.update(index.labels.tobytes())
    return digest.hexdigest()


def check_labeled(index: Index, flag: str, several: bool, split: bool = True) -> Index:
    """Return the index; raises SslkitError, naming the flag, if its labels are not those an evaluation can use.

    What is `split`, or fitted and tested on, needs two of each class.
    """
    if index.labels is None:
        raise SslkitError(
            f"{index.source} has no labels",
            "use class subfolders, a .csv with --label COLUMN, or an .npz with labels",
            flag=flag,
        )
    if len(index.classes) < 2:
        raise SslkitError(f"{index.source} has one class only ({index.classes[0]})", "expected two or more", flag=flag)
    if index.labels.ndim == 2 and not several:
        raise SslkitError(f"{index.source} has several labels in one cell", "only finetune takes them", flag=flag)
    if flag == "data" and split and index.labels.ndim == 1:
        counts = np.bincount(index.labels, minlength=len(index.classes))
        if counts.min() < 2:
            raise SslkitError(
                f"class {index.classes[int(counts.argmin())]} of {index.source} has one image",
                "expected two or more",
                flag=flag,
            )
    return index


def _in_classes(test: Index, train: Index) -> Index:
    """Return the test index with labels that count in the training part's classes."""
    assert test.labels is not None and train.labels is not None
    if test.channels != train.channels:
        raise SslkitError(
            f"images of {test.source} have {test.channels} channels, those of --data {train.channels}", flag="test"
        )
    places = {name: place for place, name in enumerate(train.classes)}
    unseen = [name for name in test.classes if name not in places]
    if unseen:
        raise SslkitError(f"{test.source} has classes that the training part lacks: {', '.join(unseen[:5])}", flag="test")
    mapping = np.array([places[name] for name in test.classes], dtype=np.int64)
    if train.labels.ndim == 1 and test.labels.ndim == 2:
        raise SslkitError(
            f"{test.source} has several labels in one cell, the training part has one for each image", flag="test"
        )
    if train.labels.ndim == 1:
        return dataclasses.replace(test, labels=mapping[test.labels], classes=train.classes)
    several = np.zeros((len(test), len(train.classes)), dtype=np.int64)
    if test.labels.ndim == 1:
        several[np.arange(len(test)), mapping[test.labels]] = 1
    else:
        several[:, mapping] = test.labels
    return dataclasses.replace(test, labels=several, classes=train.classes)
