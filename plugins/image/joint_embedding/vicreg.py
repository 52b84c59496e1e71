"""VICReg (Bardes et al., 2022)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import UnlikeViewOptions, Views
from sslkit.nn import Norm, ProjectorOptions, mlp, vicreg


class VICReg(PretextTask):
    """Align views, keeping dimensions varied and uncorrelated (VICReg; Bardes et al., 2022).

    The variance, invariance and covariance terms are logged separately.
    """

    class Options(ProjectorOptions, UnlikeViewOptions):
        """Options of `vicreg`."""

        crop_scale: float = Field(
            default=0.2, gt=0, le=1, description="Minimum crop area as a fraction of the image (0.08 in the paper)."
        )
        invariance: float = Field(default=25.0, ge=0, description="Weight of the squared distance of two views (λ).")
        variance: float = Field(
            default=25.0, ge=0, description="Weight of the hinge on each dimension's standard deviation (μ)."
        )
        covariance: float = Field(default=1.0, ge=0, description="Weight of the squared off-diagonal covariances (ν).")
        deviation: float = Field(default=1.0, gt=0, description="Standard deviation below which the variance term acts (γ).")
        hidden: int = Field(default=512, ge=1, description="Hidden width of the expander (8,192 in the paper).")
        width: int = Field(default=512, ge=2, description="Output width of the expander (8,192 in the paper).")
        norm: Norm = Field(default="batch", description="Normalization inside the expander.")

    options: Options
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.03, "weight_decay": 5e-4, "batch_size": 256}
    paper: ClassVar = Paper(
        source="README and main_vicreg.py of the authors, 1,000 epochs",
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
            "hidden": 8192,
            "width": 8192,
        },
        unsupported=("a final rate of 0.002 (here 0)", "views normalized apart (here both in one batch)"),
    )
    preview_columns: ClassVar = ("view 1", "view 2")

    def build_head(self) -> nn.Module:
        """Build the expander: three layers."""
        options = self.options
        return mlp([self.encoder.width, options.hidden, options.hidden, options.width], options.norm)

    def setup(self) -> None:
        """Set up the augmentation of views."""
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, with different blur and solarization, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch)}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the three terms over embeddings `[B, 2, D]`, weighted (equation 6)."""
        options = self.options
        weights = {"invariance": options.invariance, "variance": options.variance, "covariance": options.covariance}
        first, second = output.unbind(1)
        terms = vicreg(first, second, options.deviation)
        return {name: weight * terms[name] for name, weight in weights.items()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of the two embeddings."""
        first, second = output.unbind(1)
        return {"alignment": F.cosine_similarity(first, second, dim=1)}
