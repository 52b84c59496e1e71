"""Make two views agree while every value varies and no two say the same."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.views import UnlikeViewOptions, Views
from sslkit.nn import Norm, mlp, vicreg


class VICReg(PretextTask):
    """Make two views agree while every value varies and no two say the same (Bardes et al., 2022).

    Variance, invariance, covariance: three terms, each of which can be read in the log.
    """

    class Options(UnlikeViewOptions):
        """Hold vicreg's options."""

        crop_scale: float = Field(
            default=0.2, gt=0, le=1, description="Smallest share of the image that a random crop keeps (0.08 in the paper)."
        )
        invariance: float = Field(default=25.0, ge=0, description="Weight of the distance of two views (λ).")
        variance: float = Field(default=25.0, ge=0, description="Weight of the hinge on each value's deviation (μ).")
        covariance: float = Field(default=1.0, ge=0, description="Weight of the squared covariances (ν).")
        deviation: float = Field(default=1.0, gt=0, description="Deviation below which the variance term pushes (γ).")
        hidden: int = Field(default=512, ge=1, description="Hidden width of the expander (8,192 in the paper).")
        width: int = Field(default=512, ge=2, description="Values that vary (8,192 in the paper).")
        norm: Norm = Field(default="batch", description="Norm inside the expander.")

    options: Options
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.03, "weight_decay": 5e-4, "batch_size": 256}
    preview_columns: ClassVar = ("first view", "second view")

    def build_head(self) -> nn.Module:
        """Build the expander: three layers."""
        options = self.options
        return mlp([self.encoder.width, options.hidden, options.hidden, options.width], options.norm)

    def setup(self) -> None:
        """Settle how views are drawn."""
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, unlike in blur and solarization, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch["image"])}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the three terms over embeddings `[B, 2, D]`, weighted (equation 6)."""
        options = self.options
        weights = {"invariance": options.invariance, "variance": options.variance, "covariance": options.covariance}
        first, second = output.unbind(1)
        terms = vicreg(first, second, options.deviation)
        return {name: weight * terms[name] for name, weight in weights.items()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how alike the two embeddings are, cosine."""
        first, second = output.unbind(1)
        return {"alignment": F.cosine_similarity(first, second, dim=1)}
