"""Make the same values of two views agree and different ones say different things."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.views import UnlikeViewOptions, Views
from sslkit.nn import Norm, barlow_twins, mlp


class BarlowTwins(PretextTask):
    """Make the same values of two views agree and different ones say different things (Zbontar et al., 2021).

    Over the batch, the correlations of one view's values with the other's should be the identity matrix.
    """

    class Options(UnlikeViewOptions):
        """Hold the options of barlow_twins."""

        crop_scale: float = Field(
            default=0.2, gt=0, le=1, description="Smallest share of the image that a random crop keeps (0.08 in the paper)."
        )
        redundancy: float = Field(default=0.005, ge=0, description="Weight of the correlations of different values (λ).")
        scale: float = Field(default=0.1, gt=0, description="Factor of the whole loss (0.024 in the authors' code).")
        hidden: int = Field(default=512, ge=1, description="Hidden width of the projector (8,192 in the paper).")
        width: int = Field(default=512, ge=2, description="Values that are correlated (8,192 in the paper).")
        norm: Norm = Field(default="batch", description="Norm inside the projector.")

    options: Options
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("first view", "second view")

    def build_head(self) -> nn.Module:
        """Build the projector: three layers."""
        options = self.options
        head = mlp([self.encoder.width, options.hidden, options.hidden, options.width], options.norm)
        head[-1] = nn.Linear(options.hidden, options.width, bias=False)  # the loss takes the mean off
        return head

    def setup(self) -> None:
        """Settle how views are drawn."""
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, unlike in blur and solarization, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch["image"])}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how far the correlations of the projections `[B, 2, D]` are from the identity (equation 1)."""
        first, second = output.unbind(1)
        terms = barlow_twins(first, second, self.options.redundancy)
        return {name: self.options.scale * term for name, term in terms.items()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how alike the two projections are, cosine."""
        first, second = output.unbind(1)
        return {"alignment": F.cosine_similarity(first, second, dim=1)}
