"""Barlow Twins (Zbontar et al., 2021)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import UnlikeViewOptions, Views
from sslkit.nn import ProjectorOptions, barlow_twins, mlp


class BarlowTwins(PretextTask):
    """Push two views' cross-correlation to the identity (Barlow Twins; Zbontar et al., 2021).

    Correlations are taken over the batch, between the dimensions of one view's embedding and those of the other's.
    """

    class Options(ProjectorOptions, UnlikeViewOptions):
        """Options of `barlow_twins`."""

        crop_scale: float = Field(
            default=0.2, gt=0, le=1, description="Minimum crop area as a fraction of the image (0.08 in the paper)."
        )
        redundancy: float = Field(default=0.005, ge=0, description="Weight of the off-diagonal correlations (λ).")
        scale: float = Field(default=0.1, gt=0, description="Scale of the total loss (0.024 in the authors' code).")
        hidden: int = Field(default=512, ge=1, description="Hidden width of the projector (8,192 in the paper).")
        width: int = Field(default=512, ge=2, description="Output width of the projector (8,192 in the paper).")

    options: Options
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="section 2.2 of the paper, main.py of the authors",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 2048,
            "epochs": 1000,
            "optimizer": "lars",
            "lr": 0.2,
            "lr_scale": "linear",
            "weight_decay": 1e-6,
            "warmup": 10 / 1000,
            "crop_scale": 0.08,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "redundancy": 5.1e-3,
            "scale": 0.024,
            "hidden": 8192,
            "width": 8192,
        },
        unsupported=(
            "a rate of 0.0048 for biases and norms: `--scale` 0.024 does the same to them",
            "a final rate of a thousandth (here 0)",
            "views normalized apart (here both in one batch)",
        ),
    )
    preview_columns: ClassVar = ("view 1", "view 2")

    def build_head(self) -> nn.Module:
        """Build the projector: three layers."""
        options = self.options
        head = mlp([self.encoder.width, options.hidden, options.hidden, options.width], options.norm)
        head[-1] = nn.Linear(options.hidden, options.width, bias=False)  # no bias: the loss subtracts the mean
        return head

    def setup(self) -> None:
        """Set up the augmentation of views."""
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, with different blur and solarization, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch)}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the distance of the cross-correlation of projections `[B, 2, D]` from the identity (equation 1)."""
        first, second = output.unbind(1)
        terms = barlow_twins(first, second, self.options.redundancy)
        return {name: self.options.scale * term for name, term in terms.items()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of the two projections."""
        first, second = output.unbind(1)
        return {"alignment": F.cosine_similarity(first, second, dim=1)}
