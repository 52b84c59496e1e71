"""CMC (Tian et al., 2020)."""

import math
from itertools import combinations, permutations
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

    Lightness and color, or the groups of channels that `--views` names, have an encoder each, which share the width;
    their concatenation is the encoder that is exported. Of several, every pair is matched (section 3.3, full graph). The
    negatives are the other images of the batch.
    """

    class Options(ProjectorOptions, ViewOptions):
        """Options of `cmc`."""

        views: str = Field(
            default="l,ab",
            pattern=r"^[a-z0-9-]+(,[a-z0-9-]+)+$",
            description="Groups of channels: l,ab (lightness, color), or channels from 0, such as 0-2,3 of RGB and depth.",
        )
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
        """Build an encoder for each group of channels, which share the width, and concatenate them."""
        groups = options.views.split(",")
        if groups == ["l", "ab"] and build.data.channels != 3:
            hint = "cmc needs RGB images, or --views such as 0-2,3"
            raise SslkitError(f"images with {build.data.channels} channels have no color", hint, flag="data")
        width = 2.0 ** -math.ceil(math.log2(len(groups)))  # of each: halves and quarters divide what encoders can divide
        try:
            return concat(*(build(select=group, width=width) for group in groups))
        except SslkitError as error:
            raise SslkitError(f"{options.views}: {error}", flag="views") from error

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
        """Return a view of each image, `[B, C, S, S]`, from which the encoders select their channels."""
        return {"image": self.views(batch)}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors of the groups of channels, `[B, V, D]`."""
        projections = [head(encoder(batch["image"])) for head, encoder in zip(self.head, self.encoder.encoders, strict=True)]
        return F.normalize(torch.stack(projections, dim=1), dim=2)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return InfoNCE in both directions, summed over all pairs of groups (equations 2 to 4, and 7)."""
        return self._info_nce(output).mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return cosine similarity and the bound log N - loss on mutual information (nats), means over pairs of groups."""
        pairs = list(combinations(output.unbind(1), 2))
        bound = math.log(len(output)) - self._info_nce(output) / (2 * len(pairs))
        alignment = torch.stack([(first * second).sum(dim=1) for first, second in pairs]).mean(dim=0)
        return {"alignment": alignment, "information_bound_nats": bound}

    def _info_nce(self, output: Tensor) -> Tensor:
        """Return the sum of both directions of all pairs, `[B]`."""
        terms = [in_batch_info_nce(*pair, self.options.temperature) for pair in permutations(output.unbind(1), 2)]
        return torch.stack(terms).sum(dim=0)
