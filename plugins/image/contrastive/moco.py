"""MoCo, v1 and v2 (He et al., 2020; Chen et al., 2020)."""

import math
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, field_validator
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, SslkitError
from sslkit.image.transforms import color_jitter, grayscale
from sslkit.image.views import ColorStrength, ViewOptions, Views, color_strength_field
from sslkit.nn import (
    Momentum,
    Norm,
    ProjectorOptions,
    Queue,
    Teacher,
    check_queue,
    info_nce,
    mlp,
    momentum_reason,
    teacher_momentum,
)

Temperature = Annotated[float, Field(gt=0)]


_PAPER_MOMENTUM = 0.999


class MoCo(ImageTask):
    """Match a view to its EMA key against a queue of past keys (MoCo; He et al., 2020).

    The default is v2 (Chen et al., 2020). Keys come from a teacher in eval mode, so that BatchNorm cannot leak which
    keys belong to one batch.
    """

    class Options(ProjectorOptions, ViewOptions):
        """Options of `moco`."""

        photo_jitter: ClassVar[str] = "0.4/0.4/0.4/0.1"  # main_moco.py, `if args.aug_plus`
        color_strength: ColorStrength = color_strength_field(photo_jitter)
        variant: Literal["v1", "v2"] = Field(
            default="v2", description="v1: linear head, weak augmentation; v2: MLP head, strong augmentation."
        )
        temperature: Temperature | Literal["auto"] = Field(
            default="auto", description="Temperature of the loss; auto: 0.07 for v1, 0.2 for v2."
        )
        queue: int = Field(default=4096, ge=1, description="Number of keys in the queue (65,536 in the paper).")
        momentum: Momentum = Field(
            default="auto", description="Momentum of the teacher; auto: 1 - 10/steps, from 0.9 to the paper's 0.999."
        )
        hidden: int = Field(default=128, ge=1, description="Hidden width of v2's head (the encoder's width in the paper).")
        norm: Norm = Field(
            default="batch", description="Normalization inside v2's head (none in the paper, whose runs are longer)."
        )

        @field_validator("variant", mode="before")
        @classmethod
        def _refuse_v3(cls, variant: Any) -> Any:
            if variant == "v3":
                raise ValueError("v3 is a separate task: use sslkit pretrain mocov3")
            return variant

    options: Options
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="main_moco.py of the authors with `--mlp --moco-t 0.2 --aug-plus --cos`",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 256,
            "epochs": 200,
            "optimizer": "sgd",
            "lr": 0.03,
            "weight_decay": 1e-4,
            "warmup": 0.0,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "queue": 65_536,
            "momentum": 0.999,
            "hidden": 2048,
            "norm": "none",
        },
        unsupported=(
            "keys normalized by the statistics of shuffled batches (here by running statistics)",
            "decay of biases and norms",
        ),
    )
    preview_columns: ClassVar = ("query", "key")

    def build_head(self) -> nn.Module:
        """Build the head: linear, or an MLP with one hidden layer."""
        options = self.options
        hidden = [options.hidden] if options.variant == "v2" else []
        return mlp([self.encoder.width, *hidden, options.width], options.norm)

    def setup(self) -> None:
        """Build the teacher and the queue."""
        self.teacher = Teacher(self.encoder, self.head)
        check_queue(self.options.queue, self.data)
        self.queue = Queue(self.options.queue, self.options.width)
        self.views = Views(self.options, self.data)
        if self.options.variant == "v1" and (self.options.color_strength, self.options.blur) != ("auto", "auto"):
            raise SslkitError(
                "v1 has a fixed color jitter and no blur",
                "remove these flags or use --variant v2",
                flag=("color_strength", "blur"),
            )

    def transform(self, batch: Batch) -> Batch:
        """Return a query view and a key view of each image, `[B, 2, C, S, S]`."""
        return {"image": torch.stack([self._view(batch, number) for number in range(2)], dim=1)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors `query` and `key`, `[B, D]`."""
        first, second = batch["image"].unbind(1)
        return {
            "query": F.normalize(self.head(self.encoder(first)), dim=1),
            "key": F.normalize(self.teacher(second), dim=1),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean InfoNCE of queries against their keys and the queue."""
        return self._info_nce(output).mean()

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the keys, for the queue."""
        return {"key": output["key"]}

    def after_step(self, remembered: Batch) -> None:
        """Update the teacher and push the keys."""
        self.teacher.update(self.encoder, self.head, momentum=self.momentum)
        self.queue.push(remembered["key"])

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of query and key, and the bound log N - loss on their mutual information, in nats."""
        bound = math.log(1 + self.options.queue) - self._info_nce(output)
        return {"alignment": (output["query"] * output["key"]).sum(dim=1), "information_bound_nats": bound}

    def reasons(self) -> dict[str, str]:
        """Return what options left on `auto` became."""
        options = self.options
        reasons = (
            {"temperature": f"{self.temperature:g}: default of {options.variant}"} if options.temperature == "auto" else {}
        )
        return reasons | momentum_reason(options.momentum, self.clock, _PAPER_MOMENTUM)

    @property
    def temperature(self) -> float:
        """Return the temperature in use."""
        temperature = self.options.temperature
        return temperature if temperature != "auto" else {"v1": 0.07, "v2": 0.2}[self.options.variant]

    @property
    def momentum(self) -> float:
        """Return the teacher's momentum in use."""
        return teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM)

    def _info_nce(self, output: dict[str, Tensor]) -> Tensor:
        return info_nce(output["query"], output["key"], self.queue.rows, self.temperature)

    def _view(self, batch: Batch, number: int) -> Tensor:
        if self.options.variant == "v2":
            return self.views(batch, number)
        return grayscale(color_jitter(self.crop(batch), 0.4, 0.4, 0.4, 0.4, probability=1.0), self.options.gray)
