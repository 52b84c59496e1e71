"""CMC (Tian et al., 2020)."""

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, Paper, PretextTask, SslkitError, concat
from sslkit.encoders.composed import Concat
from sslkit.image.views import ViewOptions, Views
from sslkit.nn import ProjectorOptions, in_batch_info_nce, mlp


class CMC(PretextTask):
    """Match an image's lightness (L) to its color (ab) by InfoNCE (CMC; Tian et al., 2020).

    Lightness and color have an encoder each, half as wide; their concatenation is the encoder that is exported. The
    negatives are the other images of the batch.
    """

    class Options(ProjectorOptions, ViewOptions):
        """Options of `cmc`."""

        gray: float = Field(default=0.0, ge=0, le=1, description="Fraction of grayscale views, whose color cannot be matched.")
        temperature: float = Field(default=0.07, gt=0, description="Temperature of the loss.")
        hidden: int = Field(default=128, ge=1, description="Hidden width of the projectors (none in the paper).")

    options: Options
    encoder: Concat
    head: nn.ModuleList
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="train_CMC.py and README of the authors, ResNet-50",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 128,
            "optimizer": "sgd",
            "lr": 0.03,
            "weight_decay": 1e-4,
            "warmup": 0.0,
        },
        unsupported=(
            "negatives from a memory bank (here the batch)",
            "a linear projection (here an MLP)",
            "a rate that falls in steps (here a cosine)",
        ),
    )

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build an encoder of lightness and one of color, each half as wide, and concatenate them."""
        if build.data.channels != 3:
            raise SslkitError(f"images with {build.data.channels} channels have no color", "cmc needs RGB images", flag="data")
        return concat(build(select="l", width=0.5), build(select="ab", width=0.5))

    def build_head(self) -> nn.Module:
        """Build a projector for each encoder."""
        options = self.options
        return nn.ModuleList(
            mlp([encoder.width, options.hidden, options.width], options.norm) for encoder in self.encoder.encoders
        )

    def setup(self) -> None:
        """Set up the augmentation of views."""
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return a view of each image, `[B, C, S, S]`; the encoders select lightness and color from it."""
        return {"image": self.views(batch)}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors of lightness and color, `[B, 2, D]`."""
        projections = [head(encoder(batch["image"])) for head, encoder in zip(self.head, self.encoder.encoders, strict=True)]
        return F.normalize(torch.stack(projections, dim=1), dim=2)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return InfoNCE from lightness to color and from color to lightness (equations 2 to 4)."""
        return self._info_nce(output).mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of both, and the bound log N - loss on their mutual information, in nats."""
        lightness, color = output.unbind(1)
        bound = math.log(len(output)) - self._info_nce(output) / 2
        return {"alignment": (lightness * color).sum(dim=1), "information_bound_nats": bound}

    def _info_nce(self, output: Tensor) -> Tensor:
        """Return the sum of both directions, `[B]`."""
        lightness, color = output.unbind(1)
        temperature = self.options.temperature
        return in_batch_info_nce(lightness, color, temperature) + in_batch_info_nce(color, lightness, temperature)
