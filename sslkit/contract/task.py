"""The contract: a pretext task is one class in one file; the engine does the rest.

| part               | runs                                              | sees                                           |
|--------------------|---------------------------------------------------|------------------------------------------------|
| `transform(batch)` | on the device, once a step, no gradient, float32  | the whole batch                                |
| `predict(batch)`   | per micro-batch, autocast, compiled, in grad mode | rows of what transform gave                    |
| `loss(out, batch)` | eager, half precision widened to float32          | the same rows; all rows if `couples_samples`   |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.options import TaskOptions
from sslkit.contract.paper import Paper

CONTRACT = 2  # what a task is written for; it changes when a task that kept the promises has to be changed


Batch = Mapping[str, Any]  # tensors with samples on dim 0; entries that are not tensors pass untouched


@dataclass(frozen=True)
class DataInfo:
    """What a task knows about the data; nothing about labels, unless it needs them."""

    samples: int
    size: int  # pixels of a side; the length of a sample of another modality
    channels: int = 3  # a text: words, each of which is one channel
    modality: str = "image"
    details: Mapping[str, Any] = field(default_factory=dict)  # what only this modality has: a vocabulary, a sample rate
    batch_size: int = 1  # samples of a step, of all processes together
    classes: tuple[str, ...] = ()  # only for a task that needs labels
    several_labels: bool = False  # whether a sample may have several of them


@dataclass
class Clock:
    """The position in the run; the engine sets it before every stage."""

    step: int = 0  # steps done since the very start
    steps: int = 1  # where the run ends
    schedule_start: int = 0  # the step at which its schedules began: 0, or the end of the run that was extended
    epoch: int = 0

    @property
    def progress(self) -> float:
        """Return the share of the schedule that is done, 0 at its first step and 1 at the last."""
        return min(1.0, (self.step - self.schedule_start) / max(1, self.steps - self.schedule_start - 1))


class EncoderBuilder(Protocol):
    """Build the encoder that the user chose, or a variant of it, for this data."""

    @property
    def data(self) -> DataInfo:
        """Return what the data looks like."""

    @property
    def recipe(self) -> dict[str, Any]:
        """Return the recipe of the encoder that the user chose."""

    def __call__(self, select: str | None = None, width: float = 1.0, **changes: Any) -> Encoder:
        """Return the encoder, seeing only `l`, `ab`, `gray` or `sobel` of the image, `width` times as wide, its recipe changed.

        Raises SslkitError if it can't be built so.
        """


class Run(Protocol):
    """Offer what a task may ask of the engine in `before_epoch`."""

    def features(self, encoder: Encoder | None = None) -> Tensor:
        """Return features of all samples in data order, `[N, width]`, by the task's encoder or another, taken in eval mode."""

    def batch(self, count: int, select: Callable[[Batch], Batch] = lambda batch: batch) -> Batch:
        """Return at most `count` samples at seeded places in the data, read and prepared: what `transform` gets.

        `select` reduces some at a time to what is kept of them, where all would not fit the memory.
        """

    def map(self, function: Callable[[Batch], Tensor]) -> Tensor:
        """Return a function of all samples in data order, `[N, ...]` on the CPU; it gets prepared batches, without gradient.

        The task is in eval mode meanwhile. Several processes take a share of the samples each.
        """

    def sample_balanced(self, labels: Tensor) -> None:
        """Sample each label equally often from now on; `labels` is int64 `[N]`, samples with a negative label are skipped."""

    def reset_optimizer_state(self, module: nn.Module) -> None:
        """Drop the optimizer's state of a module whose weights were reset."""


class PretextTask(nn.Module):
    """A pretext task: turns unlabeled samples into inputs and targets, and measures predictions by a loss."""

    class Options(TaskOptions):
        """Options of the task; each field is a flag of `sslkit pretrain TASK`."""

    encoder: Encoder
    head: nn.Module

    contract: ClassVar[int] = CONTRACT
    modality: ClassVar[str] = "image"  # of the data
    encodes: ClassVar[str] = "image"  # modality of the encoder; by default that of the data
    requires: ClassVar[tuple[str, ...]] = ("pooled",)
    couples_samples: ClassVar[bool] = False
    # What a coupled loss needs of other processes: names of outputs and batch entries; empty: everything. Entries that are
    # not named keep the rows of this process; their terms are means over rows, or sums that `counts` divides.
    couples: ClassVar[tuple[str, ...]] = ()
    # Entries of a transformed batch that only encoders read: where these run in half precision, so are the entries stored.
    encoder_inputs: ClassVar[tuple[str, ...]] = ()
    # Entries of a transformed batch that the loss reads, and that predictions may depend on nevertheless: what an autoencoder
    # reconstructs, which of the positions count.
    visible_targets: ClassVar[tuple[str, ...]] = ()
    # Whether hidden or later parts of a sample are predicted: such features suit a probe or fine-tuning, less so k-NN.
    masked: ClassVar[bool] = False
    compiles: ClassVar[bool] = True  # whether torch.compile can take `predict`; recurrent layers are noticed anyway
    # Entries a batch has on request only: `index`, int64 `[B]`, places in the data; `label`, int64 `[B]`, places in
    # `self.data.classes`, -1 where unknown; of images with `--targets` `mask`, uint8 `[B, side, side]`, on the canvas of the
    # image, or `box`, float32 `[B, K, 4]`, as fractions of it, and `box_label`, int64 `[B, K]`, -1 where there is none; of
    # clips with `--poses` `pose`, float32 `[B, T, P]`; with `--cameras all` `cameras`, float32 `[B, V, T, C, side, side]`, what
    # V other cameras saw at the same time, and `cameras_aspect`, float32 `[B, V]`.
    needs: ClassVar[tuple[str, ...]] = ()
    several_labels: ClassVar[bool] = False  # whether `label` may be `[B, classes]` of 0 and 1 where samples have several
    defaults: ClassVar[dict[str, Any]] = {}  # run settings, for small data
    paper: ClassVar[Paper | None] = None  # settings of the authors, for theirs: `--recipe paper`

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "modality" in cls.__dict__ and "encodes" not in cls.__dict__:
            cls.encodes = cls.modality

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return what `sslkit check` gives for options without a default; files that they name are written into `folder`."""
        return {}

    @classmethod
    def build_encoder(cls, options: Any, build: EncoderBuilder) -> Encoder:
        """Build the encoder the user chose; override to select channels, to concatenate two, or to read `build.data`."""
        return build()

    def __init__(self, options: Any, encoder: Encoder, data: DataInfo) -> None:
        super().__init__()
        self.options, self.encoder, self.data = options, encoder, data
        self.clock = Clock()
        self.head = self.build_head()
        self.setup()

    def build_head(self) -> nn.Module:
        """Build the part that is dropped after pretraining; its input is `self.encoder.width` wide."""
        return nn.Identity()

    def setup(self) -> None:
        """Build what else the task keeps: teacher, queue, decoder, second tower, critic."""

    def before_epoch(self, run: Run) -> None:
        """Prepare an epoch: relabel, measure the data (epoch 0), into buffers; not called on a resume inside one."""

    def transform(self, batch: Batch) -> Batch:
        """Turn what the source delivers (of images, `canvas` and `aspect`), and what the task `needs`, into inputs and targets.

        Returns all that is used later, samples on dim 0 and views on dim 1; draws with torch only.
        """
        raise TypeError(f"{type(self).__name__} does not define transform()")

    def predict(self, batch: Batch) -> Any:
        """Return the output of encoder and head, a row per sample: `[B, ...]`, or `[B, V, ...]` for samples with views."""
        return self.each_view(lambda image: self.head(self.encoder(image)), batch["image"])

    def loss(self, output: Any, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Return a scalar, or named terms that add up; means over samples unless named in `counts`."""
        raise TypeError(f"{type(self).__name__} does not define loss()")

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return, for loss terms that are sums, what the sum over the whole step is divided by."""
        return {}

    def remember(self, output: Any, batch: Batch) -> Batch:
        """Return detached rows that `after_step` wants of every sample; a sum is one row."""
        return {}

    def after_step(self, remembered: Batch) -> None:
        """Update state that is no parameter (queue, teacher, center) with the rows of all micro-batches, in order."""

    def metrics(self, output: Any, batch: Batch) -> dict[str, Tensor]:
        """Return per-sample values `[B]` to be logged (accuracy of the pretext question), never trained on."""
        return {}

    def chance(self) -> dict[str, float]:
        """Return what a guess reaches, of the metrics and loss terms of which that is known, by name: `{"accuracy": 0.25}`."""
        return {}

    def param_groups(self) -> list[dict[str, Any]]:
        """Return exceptions: dicts of `params` and some of the settings.

        `lr`, `fixed_lr`, `weight_decay`, `betas` (of AdamW), `frozen_epochs` and `frozen_steps`.
        """
        return []

    def parts(self) -> list[tuple[str, "PretextTask", float]]:
        """Return (prefix, task, weight) of the tasks inside; a joint task lists its children."""
        return [("", self, 1.0)]

    def reasons(self) -> dict[str, str]:
        """Return what options left on `auto` became, by name, and why: `{"momentum": "0.97: 1 - 10/steps"}`."""
        return {}

    def exports(self) -> dict[str, nn.Module]:
        """Return what `model.safetensors` keeps."""
        return {"encoder": self.encoder}

    def metadata(self) -> dict[str, Any]:
        """Return what the task adds to the checkpoint's description, plain values for JSON: it is under `task_metadata`."""
        return {}

    preview_columns: ClassVar[tuple[str, ...]] = ()

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return pictures that explain the task, `[N, columns, C, H, W]` in [0, 1]; names in `preview_columns`.

        `batch` is what `transform` returned, and in `original` the middle of each image. `output` is what a trained task
        says of it, or None before training: columns about it are left out then. By default, what the encoder sees.
        """
        if "image" not in batch:
            return None
        image: Tensor = batch["image"]
        return image if image.dim() == 5 else image[:, None]

    def each_view(self, apply: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
        """Apply a network to `[B, ...]`, or to `[B, V, ...]` with views folded into samples and unfolded again."""
        if image.dim() == self.encoder.sample_dims + 1:
            return apply(image)
        folded: Tensor = apply(image.flatten(0, 1)).unflatten(0, image.shape[:2])
        return folded


TARGETS = ("mask", "box", "box_label")
ON_REQUEST = (
    "index",
    "label",
    "pose",
    "cameras",
    "cameras_aspect",
    *TARGETS,
)  # entries of a batch that only tasks get whose `needs` name them


def select_needed(batch: Batch, needs: tuple[str, ...]) -> Batch:
    """Return a batch without the entries that a task has to ask for and does not."""
    return _Entries({name: value for name, value in batch.items() if name not in ON_REQUEST or name in needs})


class _Entries(dict[str, Any]):
    def __missing__(self, name: str) -> Any:
        raise KeyError(f"{name}: a batch has {', '.join(self)}")


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Return rows `start` to `stop` of every tensor in a batch; other entries pass untouched."""
    return {name: value[start:stop] if isinstance(value, torch.Tensor) else value for name, value in batch.items()}
