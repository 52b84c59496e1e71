"""VICReg in small; `--variance-weight 0` lets it collapse."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, TaskOptions
from sslkit.image.transforms import color_jitter, grayscale
from sslkit.nn import mlp


class SmallVICReg(ImageTask):
    """Make two views alike, each dimension varied, and dimensions uncorrelated (Bardes et al., 2022), in small."""

    class Options(TaskOptions):
        """Hold the weights of the three terms."""

        invariance_weight: float = Field(default=25.0, ge=0, description="Weight of the distance of two views.")
        variance_weight: float = Field(default=25.0, ge=0, description="Weight of the hinge on each dimension's deviation.")
        covariance_weight: float = Field(default=1.0, ge=0, description="Weight of the squared covariances.")

    options: Options
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.05, "weight_decay": 5e-4, "batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build the expander."""
        return mlp([self.encoder.width, 256, 256], "batch")

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image."""
        return {"image": torch.stack([self._view(batch) for _ in range(2)], dim=1)}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the three terms (equations 1 to 5)."""
        views = output.unbind(1)
        deviations = [(view.var(dim=0) + 1e-4).sqrt() for view in views]
        covariances = [torch.cov(view.T) for view in views]
        width = output.shape[2]
        return {
            "invariance": self.options.invariance_weight * F.mse_loss(*views),
            "variance": self.options.variance_weight * sum(F.relu(1 - deviation).mean() / 2 for deviation in deviations),
            "covariance": self.options.covariance_weight
            * sum((covariance.square().sum() - covariance.diag().square().sum()) / width for covariance in covariances),
        }

    def _view(self, batch: Batch) -> Tensor:
        image = self.crop(batch, scale=0.2)
        return grayscale(color_jitter(image, 0.4, 0.4, 0.4, 0.1), 0.2)
