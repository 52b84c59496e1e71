"""The interface between data of any modality and the engine."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.options import DataOptions
from sslkit.contract.task import Batch, DataInfo

O = TypeVar("O", bound=DataOptions)  # noqa: E741
Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ReadSeed:
    """The seed of random reading, such as the window of a recording: a function of seed, epoch and row only."""

    seed: int
    epoch: int

    def generator(self, row: int) -> np.random.Generator:
        """Return the generator of one sample in this epoch."""
        return np.random.default_rng((self.seed, self.epoch, row))


@dataclass(frozen=True)
class Labels:
    """The class of each sample, for tasks that need it."""

    values: NDArray[np.int64]  # [N], places in `classes`; or [N, classes] of 0 and 1; -1 where it is unknown
    classes: tuple[str, ...]
    groups: NDArray[np.int64] | None = None  # [N]: samples that no split may separate

    @property
    def known(self) -> NDArray[np.bool_]:
        """Return which samples have a label, `[N]`."""
        known: NDArray[np.bool_] = (self.values if self.values.ndim == 1 else self.values.max(axis=1)) >= 0
        return known

    def fingerprint(self) -> str:
        """Return a hash of classes and labels."""
        digest = blake2b("\0".join(self.classes).encode(errors="surrogateescape"), digest_size=8)
        digest.update(self.values.tobytes())
        return digest.hexdigest()


class OpenSpec(Protocol):
    """What a source is opened with: the part of every spec that is about data."""

    @property
    def data(self) -> str | None:
        """Where the samples are: `--data`."""

    @property
    def label(self) -> str | None:
        """Column, or extension in shards, that holds labels."""

    @property
    def label_pattern(self) -> str | None:
        """Regular expression whose group is the label in a path."""

    @property
    def group(self) -> str | None:
        """Column, or extension in shards, that holds groups."""

    @property
    def group_pattern(self) -> str | None:
        """Regular expression whose group is the group in a path."""

    @property
    def seed(self) -> int:
        """Random seed."""

    @property
    def workers(self) -> int | Literal["auto"]:
        """Processes that read and decode."""

    @property
    def cache(self) -> Literal["auto", "on", "off", "compact"]:
        """Whether decoded samples are kept."""

    @property
    def cache_limit(self) -> float:
        """Size limit of the cache in GB."""

    @property
    def reindex(self) -> bool:
        """Whether to list the data again."""

    def table(self, options: type[O]) -> O:
        """Return the data options of one modality."""

    def starts(self) -> dict[str, str]:
        """Return the checkpoint that each part of what is trained starts from, by part: `--init-part`."""


class Source:
    """The samples of one part of the data, read as the `source` of a `Modality`.

    A run calls `open` (main process), then for every batch `read` (worker process), `prepare` (on the device), and the task's
    transform, or `view` where nothing may be random. It is handed to worker processes: what should not be copied to them
    (open files, memory maps) stays out of its state.
    """

    noun: ClassVar[str] = "samples"  # what they are called, in the plural: for messages
    location: str  # what the user wrote, for messages
    info: DataInfo
    resolved: dict[str, tuple[Any, str]]  # what `auto` settings became for this data, by flag, with the reason
    labels: Labels | None = None  # of a training part, once `reveal_labels` was called
    starting_parts: ClassVar[tuple[str, ...]] = ()  # besides the encoder, for which `--init-part` names a file
    on_request: Mapping[str, str] = MappingProxyType({})  # entries of a batch that only tasks get which need them, and the
    # flag that asked for each

    @classmethod
    def open(cls, spec: OpenSpec) -> Self:
        """Open what `--data` names; raises SslkitError, naming the flag, for anything that can't be read."""
        raise TypeError(f"{cls.__name__} does not define open()")

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write a small set of samples, not all alike, into a folder and return what `--data` would be (for `sslkit check`)."""
        raise TypeError(f"{cls.__name__} does not define example()")

    def fingerprint(self) -> str:
        """Return a hash of the content that is the same wherever the data lies."""
        raise TypeError(f"{type(self).__name__} does not define fingerprint()")

    def find_labels(self, several: bool = False) -> Labels:
        """Return the labels of a training part; raises SslkitError if there are none, or `several` of a sample unasked."""
        raise SslkitError(f"{self.noun} have no labels", flag="data")

    def reveal_labels(self, labels: Labels) -> None:
        """Deliver labels from now on, as `label` in batches; the engine does so for a task that needs them."""
        self.labels = labels
        self.info = replace(self.info, classes=labels.classes, several_labels=labels.values.ndim == 2)

    def training_fingerprint(self) -> str:
        """Return a hash of all that training sees, by which a run that is resumed recognizes its data."""
        return self.fingerprint() if self.labels is None else f"{self.fingerprint()}-{self.labels.fingerprint()}"

    def evaluation_fingerprint(self) -> str:
        """Return the hash that an evaluation finds for the same samples: another one where it reads less of them."""
        return self.fingerprint()

    def encoder_options(self, encodes: str) -> dict[str, Any]:
        """Return what an encoder of modality `encodes` has to be built with for this data, such as a sample rate."""
        return {}

    def sample_details(self) -> dict[str, Any]:
        """Return what a checkpoint records about the samples in plain values, for `Modality.input_guide`."""
        return {}

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return arrays by name, a row per sample, and, by place in `rows`, why some samples can't be read.

        Runs in worker processes. Whatever stands in the place of a broken sample is not used. What is random here (a
        window of a recording) is drawn from `draw`; without it, as for features and evaluation, nothing may be.
        """
        raise TypeError(f"{type(self).__name__} does not define read()")

    def prepare(self, batch: Batch) -> Batch:
        """Return what `transform` sees of the arrays, by now tensors on the device."""
        return batch

    def view(self, batch: Batch, encodes: str) -> Tensor:
        """Return what an encoder of modality `encodes` is shown of a prepared batch where nothing may be random.

        Samples `[B, ...]`, or several views of each, `[B, V, ...]`, whose features are averaged. For features, evaluation.
        """
        raise TypeError(f"{type(self).__name__} does not define view()")

    def name(self, row: int) -> str:
        """Return what to call a sample in a message or a list."""
        return f"row {row}"

    def workers(self, requested: int | str) -> tuple[int, str]:
        """Return the number of loader processes for a value of `--workers`, and the reason."""
        return (0, "nothing has to be decoded") if requested == "auto" else (int(requested), "as given")

    def cache_bytes(self) -> int:
        """Return the bytes that the samples take in the cache, once all of them are there."""
        return 0
