"""Sources whose samples an index lists: files with names and, where there are any, labels. They can be evaluated."""

import dataclasses
from typing import Any, ClassVar, Self

from sslkit.console import say_once
from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.modality import FileKind
from sslkit.contract.source import Labels, OpenSpec, Source
from sslkit.data.index import Index
from sslkit.data.locations import find_parts, read_index
from sslkit.data.patterns import with_patterns

LABEL_SOURCES = (
    "use class subfolders, --label-pattern, a table with --label COLUMN, shards with --label EXTENSION, or an .npz with labels"
)


class IndexedSource(Source):
    """A source whose samples an index lists: one per file or row of an array."""

    kind: ClassVar[FileKind]
    index: Index
    _labeled: Index | None = None  # the index of a training part, with its labels

    @classmethod
    def open(cls, spec: OpenSpec) -> Self:
        """Open the training part of `--data`, without showing its labels."""
        assert spec.data is not None
        parts = find_parts(spec.data, cls.kind)
        if len(parts) > 1:
            say_once(f"{spec.data} has {' and '.join(parts)}: pretraining reads train only")
        index = cls.read_index(parts["train"], spec)
        source = cls.for_pretraining(dataclasses.replace(index, labels=None, classes=()), spec)
        source._labeled = index
        return source

    @classmethod
    def read_index(cls, location: str, spec: OpenSpec) -> Index:
        """Index one part of the data, as `find_parts` named it, with labels and groups."""
        return with_patterns(cls.list_samples(location, spec), spec)

    @classmethod
    def list_samples(cls, location: str, spec: OpenSpec) -> Index:
        """Index one part of the data without regard to patterns in paths."""
        return read_index(location, spec, cls.kind)

    @classmethod
    def for_pretraining(cls, index: Index, spec: OpenSpec) -> Self:
        """Return the samples of an index as pretraining reads them."""
        return cls.for_training(index, spec)

    @classmethod
    def for_training(cls, index: Index, spec: OpenSpec) -> Self:
        """Return the samples of an index as training reads them."""
        raise TypeError(f"{cls.__name__} does not define for_training()")

    @classmethod
    def for_finetuning(cls, index: Index, spec: OpenSpec, encoder: Encoder | None) -> Self:
        """Return labeled samples as training reads them for a trained encoder; None: one that starts from random weights."""
        return cls.for_training(index, spec)

    @classmethod
    def for_evaluation(cls, index: Index, spec: OpenSpec, encoder: Encoder, size: int, like: Self | None = None) -> Self:
        """Return the samples of an index as an encoder trained at `size` sees them, prepared as those of `like` are."""
        raise TypeError(f"{cls.__name__} does not define for_evaluation()")

    @classmethod
    def channels(cls, index: Index) -> int | None:
        """Return the channels of samples where encoders differ by them, else None."""
        return None

    def find_labels(self, several: bool = False) -> Labels:
        """Return the labels of a training part; raises SslkitError if there are none, or `several` of a sample unasked."""
        if self._labeled is None or self._labeled.labels is None:
            raise SslkitError(f"{self.location} has no labels", LABEL_SOURCES, flag="data")
        if self._labeled.labels.ndim == 2 and not several:
            raise SslkitError(f"{self.location} has several labels per sample", "one is expected", flag="label")
        return Labels(self._labeled.labels, self._labeled.classes, self._labeled.groups)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_labeled": None}  # worker processes need no second index

    def key(self) -> str:
        """Return what names everything that decides the content of these samples on this machine."""
        raise TypeError(f"{type(self).__name__} does not define key()")

    def fingerprint(self) -> str:
        """Return a hash of names and sizes, or of an array's values."""
        return self.index.fingerprint()

    def name(self, row: int) -> str:
        """Return the path, relative to the data."""
        return self.index.name(row)
