"""SimCLR (Chen et al., 2020)."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import CropScale, ViewOptions, Views
from sslkit.nn import ProjectorOptions, mlp, nt_xent


class SimCLR(PretextTask):
    """Match two views of each image against all other images (SimCLR; Chen et al., 2020)."""

    class Options(ProjectorOptions, ViewOptions):
        """Options of `simclr`."""

        crop_scale: CropScale = 0.08
        temperature: float = Field(
            default=0.5, gt=0, description="Temperature of the loss (0.1 in the paper at ImageNet scale)."
        )
        projector: Literal["none", "linear", "mlp", "deep"] = Field(
            default="mlp", description="Architecture of the projector; deep: three layers, as in SimCLRv2."
        )
        hidden: int = Field(
            default=128, ge=1, description="Hidden width of the MLP projector (the encoder's width in the paper)."
        )

    options: Options
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.12, "weight_decay": 5e-4, "batch_size": 256}
    paper: ClassVar = Paper(
        source="section 2.2 and table 6 of the paper, run.py of the authors",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 4096,
            "epochs": 1000,
            "optimizer": "lars",
            "lr": 0.3,
            "lr_scale": "linear",
            "weight_decay": 1e-6,
            "warmup": 10 / 1000,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "temperature": 0.1,
            "hidden": 2048,
        },
        unsupported=("a BatchNorm on the projector's output (model_util.py)",),
    )
    preview_columns: ClassVar = ("view 1", "view 2")

    def build_head(self) -> nn.Module:
        """Build the projector."""
        options = self.options
        if options.projector == "none":
            return nn.Identity()
        return mlp([self.encoder.width, *self._hidden(), options.width], options.norm)

    def setup(self) -> None:
        """Set up the augmentation of views."""
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return NT-Xent over projections `[B, 2, D]`."""
        return nt_xent(output, self.options.temperature)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how often an image's own second view is the nearest, their cosine, and log N - loss, in nats."""
        first, second = F.normalize(output, dim=-1).unbind(1)
        similarity = first @ second.T
        images = torch.arange(len(output), device=output.device)
        bound = math.log(2 * len(output) - 1) - nt_xent(output, self.options.temperature)
        return {
            "accuracy": (similarity.argmax(dim=1) == images).float(),
            "alignment": similarity.diagonal(),
            "information_bound_nats": bound.expand(len(output)),
        }

    def exports(self) -> dict[str, nn.Module]:
        """Return the encoder and the projector, which `finetune --projector-layers` can begin in."""
        return {"encoder": self.encoder, **({"projector": self.head} if self._hidden() else {})}

    def metadata(self) -> dict[str, Any]:
        """Return the widths of the projector's hidden layers, and its norm."""
        return {"projector": {"hidden": self._hidden(), "norm": self.options.norm}} if self._hidden() else {}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the images of a batch."""
        return {"accuracy": 1 / self.data.batch_size}

    def _hidden(self) -> list[int]:
        """Return the widths of the projector's hidden layers."""
        return [self.options.hidden] * {"none": 0, "linear": 0, "mlp": 1, "deep": 2}[self.options.projector]
