"""What an export format is: one class in one file, and one entry point of `sslkit.exporters`; its name is what `--to` takes."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from sslkit.contract.encoder import Encoder

DESCRIPTION = "sslkit_export"  # the key under which files hold `ExportJob.description` as JSON
Settings = dict[str, Any]  # what the reader needs besides the file; must survive JSON


class Network(nn.Module):
    """The exported network: samples as the encoder takes them to features `[B, width]`, or to a classifier's logits."""

    def __init__(self, encoder: Encoder, classifier: nn.Linear | None) -> None:
        super().__init__()
        self.encoder, self.classifier = encoder, classifier

    def forward(self, sample: Tensor) -> Tensor:
        """Return features or logits."""
        features: Tensor = self.encoder(sample)
        return features if self.classifier is None else self.classifier(features)


@dataclass(frozen=True)
class ExportJob:
    """A checkpoint to export, and how: the argument of every method of an `Exporter`."""

    format: str  # name of the exporter's entry point
    checkpoint: Path
    metadata: dict[str, Any]  # of the checkpoint
    network: Network
    classes: list[str]  # in the order of the logits; empty without a classifier
    size: int  # pixels per side; the length of a sample of another modality
    dynamic_batch: bool  # whether a traced graph has to take any number of samples
    dynamic_size: bool  # whether a traced graph has to take larger samples, too
    license: str | None = None  # of the weights, as the user names it
    description: dict[str, Any] = field(default_factory=dict)  # of the file, in plain values, to be written into it

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the encoder's recipe."""
        recipe: dict[str, Any] = self.metadata["recipe"]
        return recipe

    @property
    def input(self) -> str:
        """Return the name of what the network takes: that of its modality."""
        return self.network.encoder.modality

    @property
    def output(self) -> str:
        """Return what the network computes: `features` or `logits`."""
        return "logits" if self.classes else "features"

    @property
    def license_entry(self) -> dict[str, str]:
        """Return the license as the Hub writes it in a card's front matter, empty if it is not stated."""
        return {"license": self.license.lower()} if self.license else {}


class Exporter:
    """Write a checkpoint in one format. The class docstring's first line is the format's summary in listings.

    The engine runs `check`, computes what the network returns for real samples, calls `write`, and reads the file back in
    another process with `reader`: a file that computes something else is removed.

    `reader` is a Python file that imports nothing of sslkit and defines `load(file: str, settings: dict)`, which returns a
    callable: from a NumPy batch of samples to what the file computes for it. It normalizes the samples unless the file does.
    """

    suffix: ClassVar[str]  # of the file, such as `.onnx`
    files: ClassVar[tuple[str, ...]] = ()  # of the folder that it writes, README.md (the card) included; none: one file
    reader: ClassVar[Path]  # as described above
    normalizes: ClassVar[bool] = False  # whether the file takes raw samples (images in [0, 1]), normalization inside
    takes_tensors: ClassVar[bool] = True  # whether the lines of `loading` take tensors of torch, else arrays of NumPy
    modalities: ClassVar[tuple[str, ...]] = ()  # of the encoders that it can hold; empty: any
    tolerance: ClassVar[float] = 1e-3  # largest difference, relative to the largest value computed

    def check(self, job: ExportJob) -> None:
        """Raise SslkitError (`flag="to"`) for a checkpoint that the format cannot hold, or for a missing package."""

    def batches(self, job: ExportJob) -> tuple[list[Tensor], str] | None:
        """Return batches on which to verify the file, and a description of them; None: real samples of the run's data."""
        return None

    def write(self, job: ExportJob, samples: Tensor, path: Path) -> Settings:
        """Write the file for a network traced on `samples` (two or more if `dynamic_batch`) and return the reader's settings.

        Raises SslkitError for a network that cannot be written.
        """
        raise TypeError(f"{type(self).__name__} does not define write()")

    def loading(self, name: str, settings: Settings, output: str) -> list[str]:
        """Return the lines of Python for the card that load the file `name` and compute `output` from `image`.

        For other modalities the variable is named after the modality, such as `audio`.
        """
        raise TypeError(f"{type(self).__name__} does not define loading()")

    def contents(self, job: ExportJob) -> dict[str, Any]:
        """Return rows for the card's table if the file holds something other than a network, such as word vectors.

        They replace the rows on encoder, input and output and the results; empty (the default) for a network.
        """
        return {}

    def front_matter(self, job: ExportJob) -> dict[str, Any]:
        """Return what stands in YAML before the card, in plain values; nothing by default."""
        return {}
