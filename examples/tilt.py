"""A pretext task in one file: `sslkit pretrain examples/tilt.py --data ./imgs`."""

import math

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, TaskOptions


class Tilt(ImageTask):
    """Tell by how much an image was tilted."""

    class Options(TaskOptions):
        """Hold tilt's options; each is a flag: `--degrees 30`."""

        degrees: float = Field(default=45, gt=0, le=90, description="Largest tilt to either side.")

    options: Options

    def build_head(self) -> nn.Module:
        """Build what stands on the encoder and is dropped after pretraining."""
        return nn.Linear(self.encoder.width, 1)

    def transform(self, batch: Batch) -> Batch:
        """Tilt each image `[B, C, S, S]` by its own angle; samples stay on dim 0."""
        image = self.crop(batch, scale=0.6)
        tilt = 2 * torch.rand(len(image), device=image.device) - 1
        angle = tilt * math.radians(self.options.degrees)
        zero = torch.zeros_like(angle)
        theta = torch.stack([angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero], dim=1).view(-1, 2, 3)
        grid = F.affine_grid(theta, list(image.shape), align_corners=False)
        return {"image": F.grid_sample(image, grid, padding_mode="reflection", align_corners=False), "tilt": tilt}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error of `[B, 1]`, in units of the largest tilt."""
        return F.mse_loss(output[:, 0], batch["tilt"])
