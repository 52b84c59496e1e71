"""Labelled training and test parts for an evaluation."""

import dataclasses
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sslkit.console import say
from sslkit.data.images import Images
from sslkit.data.index import Index
from sslkit.data.parts import find_parts, read_index
from sslkit.encoders import Encoder
from sslkit.engine.checkpoint import Checkpoint, read_model
from sslkit.engine.folder import RESULTS, append_json, holds_run, read_spec
from sslkit.engine.precision import choose_device
from sslkit.errors import SslkitError
from sslkit.evaluate.features import extract
from sslkit.specs import DataSpec, EvaluationSpec


@dataclass(frozen=True)
class Parts:
    """Hold the labelled parts of the data; the test part's labels count in the training part's classes."""

    train: Index
    test: Index
    test_seen_in_pretraining: bool
    data: str  # where they come from
    label: str | None
    fingerprint: str  # of the training part, before any of it was split off

    @property
    def classes(self) -> tuple[str, ...]:
        """Return the class names."""
        return self.train.classes


@dataclass(frozen=True)
class Features:
    """Hold features `[N, width]` and labels `[N]` of both parts."""

    train: Tensor
    train_labels: Tensor
    test: Tensor
    test_labels: Tensor


@dataclass(frozen=True)
class Evaluation:
    """Hold a checkpoint's encoder on its device, and the parts it is evaluated on."""

    spec: EvaluationSpec
    checkpoint: Checkpoint
    encoder: Encoder
    parts: Parts

    def features(self, encoder: Encoder | None = None) -> Features:
        """Return the features of both parts, by the checkpoint's encoder or another one."""
        encoder = self.encoder if encoder is None else encoder.to(self.encoder.device)
        size = self.checkpoint.size if self.spec.size == "auto" else self.spec.size
        found = [self._one_part(encoder, index, size) for index in (self.parts.train, self.parts.test)]
        (train, train_labels), (test, test_labels) = found
        return Features(train, train_labels, test, test_labels)

    def record(self, result: dict[str, Any]) -> None:
        """Add a result to the run's results.jsonl, with the hash of the weights; nothing where there is no run."""
        folder = self.checkpoint.path.parent
        if holds_run(folder):
            try:
                append_json(folder / RESULTS, {**result, "weights": weights_hash(self.checkpoint)})
            except OSError as error:  # the number is there all the same
                say(f"the result is not kept: cannot write {folder / RESULTS}: {error.strerror}")

    def _one_part(self, encoder: Encoder, index: Index, size: int) -> tuple[Tensor, Tensor]:
        images = Images.of(index, self.spec, size)
        features, rows = extract(encoder, images, self.spec.batch_size, self.spec.workers)
        if not torch.isfinite(features).all():
            raise SslkitError(f"--ckpt: features of {self.checkpoint.path} are not finite", "the run had diverged")
        if len(rows) < len(index):
            say(f"{len(index) - len(rows)} unreadable images of {index.source} left out")
        assert index.labels is not None
        return features, torch.from_numpy(index.labels[rows])


def open_evaluation(spec: EvaluationSpec) -> Evaluation:
    """Read checkpoint and data for an evaluation; raises SslkitError for anything that is missing or does not fit."""
    checkpoint = read_model(spec.ckpt)
    checkpoint.check_images()
    device, _ = choose_device(spec.device)
    encoder = checkpoint.build_encoder(allowed=spec.encoder).to(device)
    return Evaluation(spec, checkpoint, encoder, find_labelled(spec, spec.test, checkpoint))


def find_labelled(spec: DataSpec, test: str | None, checkpoint: Checkpoint | None) -> Parts:
    """Return labelled training and test parts, and print where the test part comes from.

    Without `--data` they are those of the run beside the checkpoint, whose fingerprint has to match. Without a test
    part, a fifth of each class is split off by the seed.
    """
    data, label = spec.data, spec.label
    own = data is None
    if data is None:
        data, recorded_label = _data_beside(checkpoint)
        label = label or recorded_label
    located = find_parts(data)
    train = _labelled(read_index(located.pop("train"), label, spec.reindex))
    pretrained_on = checkpoint.metadata["data"] if checkpoint else None
    if checkpoint is not None and train.channels != checkpoint.channels:
        raise SslkitError(f"--data: images have {train.channels} channels, the encoder takes {checkpoint.channels}")
    fingerprint = train.fingerprint()
    seen = fingerprint == pretrained_on
    if own and not seen:
        raise SslkitError(f"--data: {data} is no longer what the run saw", "name it with --data to evaluate on it all the same")
    origin = (str(Path(data).resolve()), label, fingerprint)
    holder = data
    if test is not None:
        holder, located = test, find_parts(test)
        if len(located) > 1:
            del located["train"]
    if located:
        name, location = next(iter(located.items()))
        part = _labelled(read_index(location, label, spec.reindex))
        say(f"test part: {holder if location == holder else f'{name} of {holder}'}")
        return Parts(train, _in_classes(part, train), part.fingerprint() == pretrained_on, *origin)
    say(f"test part: a fifth of each class of {data}, drawn by --seed {spec.seed}{', seen in pretraining' if seen else ''}")
    kept, held_out = stratified_split(train, 0.2, spec.seed)
    return Parts(kept, held_out, seen, *origin)


def stratified_split(index: Index, share: float, seed: int) -> tuple[Index, Index]:
    """Return two indexes, the second with `share` of each class (at least one image), drawn by the seed."""
    assert index.labels is not None
    order = np.random.default_rng(seed).permutation(len(index))
    chosen = np.zeros(len(index), dtype=bool)
    for label, name in enumerate(index.classes):
        members = order[index.labels[order] == label]
        if len(members) < 2:
            raise SslkitError(f"--data: class {name} has one image", "a split needs two; or give a test part with --test")
        chosen[members[: max(1, round(share * len(members)))]] = True
    return index.subset(np.flatnonzero(~chosen)), index.subset(np.flatnonzero(chosen))


def weights_hash(checkpoint: Checkpoint) -> str:
    """Return a hash of all weights in a checkpoint."""
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.tensors.items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _data_beside(checkpoint: Checkpoint | None) -> tuple[str, str | None]:
    if checkpoint is None:
        raise SslkitError("--data is missing", "give labelled images: class subfolders, or a .csv with --label")
    folder = Path(checkpoint.path).parent
    if not holds_run(folder):
        raise SslkitError(f"--data is missing and {folder} holds no run that would name it", "give labelled data")
    recorded = read_spec(folder)
    data, label = recorded.get("data"), recorded.get("label")
    if not isinstance(data, str):
        raise SslkitError(f"--data is missing and the run in {folder} names none")
    return data, label if isinstance(label, str) else None


def _labelled(index: Index) -> Index:
    if index.labels is None:
        raise SslkitError(
            f"--data: {index.source} has no labels", "use class subfolders, a .csv with --label COLUMN, or an .npz with labels"
        )
    if len(index.classes) < 2:
        raise SslkitError(f"--data: {index.source} has one class only ({index.classes[0]})", "expected two or more")
    return index


def _in_classes(test: Index, train: Index) -> Index:
    """Return the test index with labels that count in the training part's classes."""
    places = {name: place for place, name in enumerate(train.classes)}
    unseen = [name for name in test.classes if name not in places]
    if unseen:
        raise SslkitError(f"--test: {test.source} has classes that the training part lacks: {', '.join(unseen[:5])}")
    assert test.labels is not None
    mapping = np.array([places[name] for name in test.classes], dtype=np.int64)
    return dataclasses.replace(test, labels=mapping[test.labels], classes=train.classes)
