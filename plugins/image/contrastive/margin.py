"""Contrastive loss with a margin (Hadsell et al., 2006)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.views import ViewOptions, Views
from sslkit.nn import ProjectorOptions, margin_loss, mlp


class Margin(PretextTask):
    """Pull views of an image together and push others beyond a margin (Hadsell et al., 2006)."""

    class Options(ProjectorOptions, ViewOptions):
        """Options of `margin`."""

        margin: float = Field(
            default=1.0, gt=0, le=2, description="Distance beyond which other images are no longer pushed away."
        )

    options: Options
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("view 1", "view 2")

    def build_head(self) -> nn.Module:
        """Build the projector."""
        return mlp([self.encoder.width, self.options.hidden, self.options.width], self.options.norm)

    def setup(self) -> None:
        """Set up the augmentation of views."""
        self.views = Views(self.options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch)}

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return both terms over unit vectors of projections `[B, 2, D]`."""
        first, second = F.normalize(output, dim=2).unbind(1)
        return margin_loss(first, second, self.options.margin)

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of the two views, and how often an image's own second view is the nearest."""
        first, second = F.normalize(output, dim=2).unbind(1)
        similarity = first @ second.T
        return {"alignment": similarity.diagonal(), "accuracy": (similarity.diagonal() >= similarity.amax(dim=1)).float()}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the images of a batch."""
        return {"accuracy": 1 / self.data.batch_size}
