"""Barlow Twins (Zbontar et al., 2021)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
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
