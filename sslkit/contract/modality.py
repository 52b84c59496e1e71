"""What sslkit asks of a modality: the record that answers what an `if modality ==` would ask elsewhere.

A modality is one entry point of `sslkit.modalities`. It names a subclass of `DataOptions` in a module without torch; its
`record` names the subclass of `Modality`, which is imported when data is opened.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from sslkit.contract.errors import SslkitError
from sslkit.contract.options import DataOptions

if TYPE_CHECKING:
    from pathlib import Path

    from PIL.Image import Image
    from torch import Tensor

    from sslkit.contract.encoder import Encoder
    from sslkit.contract.source import Source
    from sslkit.contract.task import Batch, DataInfo


_OF_IMAGES = ("crop_scale", "mixup", "cutmix", "randaugment", "erasing", "teacher")  # options of `sslkit finetune`


@dataclass(frozen=True)
class FileKind:
    """Describe which files are samples of a modality, and what `--data` accepts: for messages."""

    noun: str  # what samples are called, in the plural
    extensions: frozenset[str]
    accepts: str
    arrays: tuple[str, ...] = ()  # also rows of arrays in .npy, .npz and .h5 files: what the array may be called
    shards: bool = False  # also members of WebDataset shards
    grouped: bool = False  # file names often tell a speaker or a camera, whose samples are alike
    column: str = ""  # also cells of parquet files and Hugging Face datasets, by default of the column of this name


@dataclass(frozen=True)
class Snippet:
    """Lines of Python that make what an encoder takes of one file, as a batch of one called as the modality."""

    title: str  # the libraries that it needs
    lines: list[str]
    makes_tensor: bool  # of torch, else an array of NumPy


@dataclass(frozen=True)
class InputGuide:
    """How a file becomes what an encoder takes: for the card of an export, its `--json`, and inside the file."""

    facts: dict[str, Any]  # plain values, such as {"resize": 256, "crop": 224}
    summary: str  # of a line
    text: list[str]  # all of it in Markdown
    snippets: list[Snippet]
    files: dict[str, bytes] = field(default_factory=dict)  # by name, to be written beside an export, which they extend


class Augmentation(Protocol):
    """Change labeled samples at random, for training."""

    def __call__(self, batch: "Batch", target: "Tensor") -> "tuple[Batch, Tensor]":
        """Return what the encoder sees, called as its modality, and targets `[B, classes]`, of a prepared batch and targets."""


@dataclass(frozen=True)
class JointSpace:
    """What brings features of samples, and texts, into one space, as unit vectors `[N, D]` on the CPU."""

    features: Callable[["Tensor"], "Tensor"]
    texts: Callable[[list[str]], "Tensor"]


class Modality:
    """Describe one modality to the machinery, which knows none by name; methods with a default are optional.

    `encodes` lists the modalities of the encoders that its source has views for (of a video, frames for encoders of images);
    `evaluated_as` is the modality whose source reads its samples for evaluations; `stands_for` is one whose tasks run on its
    samples, too, as `TASK@NAME`: their batches have the same entries. Members about encoders, such as
    the default one, describe encoders of this modality, whatever the data.
    """

    options: ClassVar[type[DataOptions]]
    source: ClassVar[type["Source"]]
    encodes: ClassVar[tuple[str, ...]]
    evaluated_as: ClassVar[str]
    stands_for: ClassVar[str | None] = None
    encoder_channels: ClassVar[int | None] = None  # with which an encoder is tried before data is opened; None: data tells
    encoder_size: ClassVar[int] = 224  # the same for the size of a sample
    sizes: ClassVar[tuple[int, ...]] = ()  # ascending, among which `auto` chooses what a CPU can train; empty: the data decides
    small_size: ClassVar[int] = 0  # up to which samples are trained on as they are
    small_options: ClassVar[dict[str, dict[str, str]]] = {}  # by encoder: options that make it small, for `sslkit check`
    copies_from: ClassVar[float | None] = None  # likeness of content from which samples are copies; None: it is not compared
    suggestions: ClassVar[dict[str, str]] = {}  # by requirement: encoders that meet it, for messages

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        name = cls.options.modality
        cls.encodes = cls.__dict__.get("encodes", (name,))
        cls.evaluated_as = cls.__dict__.get("evaluated_as", name)

    @property
    def name(self) -> str:
        """Return the name of the entry point."""
        return self.options.modality

    @property
    def noun(self) -> str:
        """Return what samples are called, in the plural."""
        return self.options.noun

    def default_encoder(self, info: "DataInfo", requires: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return the encoder that `--encoder auto` means for a task that requires this of it, and the reason."""
        raise SslkitError(f"there is no default encoder for {self.name} data", "name an encoder", flag="encoder")

    def small_encoder(self, requires: tuple[str, ...], exact: bool) -> str:
        """Return a small encoder for `sslkit check`; `exact`: one without BatchNorm."""
        return "auto"

    def count_selected(self, selection: str, channels: int) -> int:
        """Return the channels of a part of samples with so many channels; raises SslkitError if they have no such part."""
        raise SslkitError(f"encoders of {self.name} data cannot be restricted to {selection}")

    def select(self, selection: str, channels: int, encoder: "Encoder") -> "Encoder":
        """Return an encoder that sees only a part of samples with so many channels."""
        raise SslkitError(f"encoders of {self.name} data cannot be restricted to {selection}")

    def health_samples(self, source: "Source", batch: "Batch", encoder: "Encoder") -> "Batch":
        """Return what to keep of a prepared batch for the views on which feature health is measured."""
        view = source.view(batch, encoder.modality)
        several = view.dim() == encoder.sample_dims + 2
        return {"view": view[:, :2].clone() if several else view[:, None]}  # of a clip, not all frames

    def health_views(self, samples: "Batch", info: "DataInfo") -> tuple["Tensor", "Tensor"]:
        """Return two views of the same samples; the same ones for a seed, whatever the task makes of samples."""
        return samples["view"][:, 0], samples["view"][:, -1]

    def original(self, batch: "Batch", info: "DataInfo") -> "Tensor | None":
        """Return pictures `[N, C, H, W]` of samples as they are before a task's transform, None if they have none."""
        return None

    def thumbnail(self, source: "Source", row: int) -> "Image | None":
        """Return a picture of one sample for reports, None if there is none or it can't be read."""
        return None

    def joint_space(self, checkpoint: Any, spec: Any, device: Any) -> "JointSpace | None":
        """Return where samples of a checkpoint and texts lie together; None if it has no such text encoder."""
        return None

    def content(self, batch: "Batch") -> "Tensor":
        """Return a small description of what prepared samples show, `[B, ...]`, by which copies are known."""
        raise SslkitError(f"{self.noun} are not compared by content")

    def likeness(self, first: "Tensor", second: "Tensor") -> "Tensor":
        """Return how alike samples are by their content, `[P]`: copies from `copies_from` on."""
        raise SslkitError(f"{self.noun} are not compared by content")

    def baseline(self, encoder: "Encoder", channels: int, size: int, detail: int) -> "tuple[str, Encoder] | None":
        """Return the plainest features of a sample, which learned ones have to beat, and their name in results.

        `detail` bounds their number: raw pixels are those of images of so many pixels a side.
        """
        return None

    def reference_scores(self, train: Any, tests: list[Any], seed: int) -> "list[tuple[str, list[Tensor]]]":
        """Return class scores `[N, classes]` of each test part by classifiers that need no encoder, by name.

        They are fitted on the training part alone, and are rows of `knn` and `probe` beside the features. Parts are
        `sslkit.data.index.Index`.
        """
        return []

    def reference_values(self, train: Any, values: "Tensor", tests: list[Any], seed: int) -> "list[tuple[str, list[Tensor]]]":
        """Return predictions `[N]`, float64, by methods without an encoder, fitted on `train` and its `values`."""
        return []

    def augmentation(self, options: Any, info: "DataInfo", classes: int) -> "Augmentation":
        """Return what `sslkit finetune` does to labeled samples at random; raises SslkitError if it can't train on them."""
        raise SslkitError(f"fine-tuning is not available for {self.name} data", "sslkit probe evaluates its features")

    def refuse_image_augmentation(self, options: Any) -> None:
        """Raise SslkitError for options of `sslkit finetune` that are for images."""
        set_by_user = [name for name in _OF_IMAGES if getattr(options, name) != type(options).model_fields[name].default]
        if set_by_user:
            flag = "recipe" if options.recipe != "plain" else set_by_user[0]
            raise SslkitError(f"it is for images, and this is {self.name} data", "leave it out", flag=flag)

    def example_inputs(self, count: int, channels: int, size: int) -> "tuple[Tensor, str]":
        """Return real samples that ship with the installation, as encoders see them, and what they are: for `sslkit export`."""
        raise SslkitError(f"this format is not available for encoders of {self.name} data", flag="to")

    def input_guide(
        self, encoder: "Encoder", size: int, options: "DataOptions", sample_details: Mapping[str, Any]
    ) -> InputGuide | None:
        """Return how a file becomes what an encoder takes, in evaluations and once exported; None if that is not described.

        `options` are the data options of the training, `sample_details` what its source recorded about its samples.
        """
        return None

    def example_data(self, folder: "Path", samples: int) -> str:
        """Write a small set of samples, not all alike, into a folder and return what `--data` would be (for `sslkit check`)."""
        return self.source.example(folder, samples)
