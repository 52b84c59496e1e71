"""A pretext task for sslkit."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, TaskOptions


class UpsideDown(ImageTask):
    """Predict whether an image is upside down: replace this with your own idea."""

    class Options(TaskOptions):
        """Options of upside_down; each is a flag: `--crop-scale 0.5`."""

        crop_scale: float = Field(default=0.6, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")

    contract: ClassVar = 2  # the version of sslkit's contract that this was written for
    options: Options
    defaults: ClassVar = {"batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build the head, which is dropped after pretraining."""
        return nn.Linear(self.encoder.width, 2)

    def transform(self, batch: Batch) -> Batch:
        """Return images `[B, C, S, S]`, half of them upside down, and labels `[B]`; on the device, without gradient."""
        image = self.crop(batch)
        turned = torch.rand(len(image), device=image.device) < 0.5
        return {"image": torch.where(turned[:, None, None, None], image.flip(2), image), "turned": turned.long()}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of logits `[B, 2]`."""
        return F.cross_entropy(output, batch["turned"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether each prediction is right."""
        return {"accuracy": (output.argmax(dim=1) == batch["turned"]).float()}

    def chance(self) -> dict[str, float]:
        """Return the share that guesses get right."""
        return {"accuracy": 0.5}
