"""What the engine asks of data, whatever its modality."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sslkit.contract.errors import SslkitError
from sslkit.contract.options import DataSpec
from sslkit.contract.task import Batch, DataInfo

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class ReadSeed:
    """Say what a source draws from, where reading is random: with a sample's row, and nothing a process remembers."""

    seed: int
    epoch: int

    def generator(self, row: int) -> np.random.Generator:
        """Return the generator of one sample in this epoch."""
        return np.random.default_rng((self.seed, self.epoch, row))


class Source:
    """Hold the samples of one part of the data; the entry point in `sslkit.sources` is named like its modality.

    It is handed to worker processes: what should not be copied to them (open files, memory maps) stays out of its state.
    """

    accepts: ClassVar[str] = "data"  # what `--data` may be, and what its samples are called: for messages
    called: ClassVar[str] = "samples"
    encoded_as: ClassVar[str | None] = None  # the modality of the encoders it needs, if not its own
    evaluated_as: ClassVar[str | None] = None  # the modality whose source reads the samples for an evaluation, if not its own
    location: str  # what the user wrote, for messages
    info: DataInfo
    settled: dict[str, tuple[Any, str]]  # what `auto` settings became for this data, by flag, with the reason

    @classmethod
    def open(cls, spec: DataSpec) -> Self:
        """Open what `--data` names; raises SslkitError, naming the flag, for anything that can't be read."""
        raise TypeError(f"{cls.__name__} does not define open()")

    @classmethod
    def example(cls, folder: Path, samples: int) -> str:
        """Write a small set of samples, not all alike, into a folder and return what `--data` would be (for `sslkit check`)."""
        raise TypeError(f"{cls.__name__} does not define example()")

    def fingerprint(self) -> str:
        """Return a hash of the content that is the same wherever the data lies."""
        raise TypeError(f"{type(self).__name__} does not define fingerprint()")

    def evaluated_fingerprint(self) -> str:
        """Return the hash that an evaluation finds for the same samples: another one where it reads less of them."""
        return self.fingerprint()

    def read(self, rows: Rows, draw: ReadSeed | None = None) -> tuple[dict[str, NDArray[Any]], dict[int, str]]:
        """Return arrays by name, a row per sample, and, by place in `rows`, why some samples can't be read.

        Runs in worker processes. Whatever stands in the place of a broken sample is not used. What is random here (a
        window of a recording) is drawn from `draw`; without it, as for features and evaluation, nothing may be.
        """
        raise TypeError(f"{type(self).__name__} does not define read()")

    def prepare(self, batch: Batch) -> Batch:
        """Return what `transform` sees of the arrays, by now tensors on the device."""
        return batch

    def view(self, batch: Batch) -> Tensor:
        """Return what the encoder is shown of a prepared batch where nothing may be random: features, evaluation.

        Samples `[B, ...]`, or several views of each, `[B, V, ...]`, whose features are averaged.
        """
        raise TypeError(f"{type(self).__name__} does not define view()")

    def name(self, row: int) -> str:
        """Return what to call a sample in a message or a list."""
        return f"row {row}"

    def choose_encoder(self, reads: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return the encoder that `--encoder auto` means for a task that reads this of it, and the reason."""
        raise SslkitError(
            f"auto knows no encoder of {self.info.modality} data", "name one, or let the task's defaults", flag="encoder"
        )

    def workers(self, asked: int | str) -> tuple[int, str]:
        """Return how many processes read, for what `--workers` says, and the reason."""
        return (0, "nothing has to be decoded") if asked == "auto" else (int(asked), "as given")

    def cache_bytes(self) -> int:
        """Return the bytes that the samples take in the cache, once all of them are there."""
        return 0
