"""Rotation prediction (RotNet; Gidaris et al., 2018)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper
from sslkit.image.transforms import right_angle_rotations
from sslkit.image.views import CropOptions, CropScale
from sslkit.pictures import add_frame


class Rotation(ImageTask):
    """Predict by which multiple of 90 degrees an image is rotated (Gidaris et al., 2018).

    Every step contains all four rotations of each image, which the paper found to work best.
    """

    class Options(CropOptions):
        """Options of `rotation`."""

        crop_scale: CropScale = 0.6

    options: Options
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 128}
    paper: ClassVar = Paper(
        source="config/ImageNet_RotNet_AlexNet.py of the authors",
        settings={
            "size": 224,
            "batch_size": 192,
            "epochs": 50,
            "lr": 0.01,
            "nesterov": True,
            "warmup": 0.0,
            "crop_scale": 0.08,
        },
        unsupported=(
            "AlexNet with BatchNorm",
            "a rate that falls in steps, at epochs 15, 30 and 45 (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("0 degrees", "90 degrees", "180 degrees", "270 degrees")

    def build_head(self) -> nn.Module:
        """Build the linear four-way classifier."""
        return nn.Linear(self.encoder.width, 4)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image in all four rotations, `[B, 4, C, S, S]`."""
        image = self.crop(batch)
        return {"image": right_angle_rotations(image)}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the cross-entropy of logits `[B, 4, 4]` with the rotations."""
        return F.cross_entropy(output.flatten(0, 1), self._rotations(output).flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy over the four rotations of each image."""
        return {"accuracy": (output.argmax(dim=-1) == self._rotations(output)).float().mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess: one rotation in four."""
        return {"accuracy": 1 / 4}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the four rotations; once trained, framed green where the prediction is correct, else red."""
        image = batch["image"]
        return image if output is None else add_frame(image, output.argmax(dim=-1) == self._rotations(output))

    def _rotations(self, output: Tensor) -> Tensor:
        return torch.arange(4, device=output.device).expand(len(output), 4)
