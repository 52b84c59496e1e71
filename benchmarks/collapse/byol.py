"""BYOL in small; `--no-predictor --no-stop-gradient` lets it collapse."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, TaskOptions
from sslkit.image.transforms import color_jitter, grayscale
from sslkit.nn import Teacher, mlp


class SmallBYOL(ImageTask):
    """Predict the teacher's projection of the other view (Grill et al., 2020), in small."""

    class Options(TaskOptions):
        """Hold what keeps BYOL from collapsing."""

        predictor: bool = Field(default=True, description="Predict the other projection instead of being it.")
        stop_gradient: bool = Field(default=True, description="Compare with a teacher; else with the student itself.")
        momentum: float = Field(default=0.95, ge=0, lt=1, description="Momentum of the teacher.")

    options: Options
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.03, "weight_decay": 5e-4, "batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build the projector."""
        return mlp([self.encoder.width, 256, 128], "batch")

    def setup(self) -> None:
        """Build predictor and teacher."""
        self.predictor = mlp([128, 256, 128], "batch") if self.options.predictor else nn.Identity()
        self.teacher = Teacher(self.encoder, self.head)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image."""
        return {"image": torch.stack([self._view(batch) for _ in range(2)], dim=1)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return predictions and targets, `[B, 2, 128]`."""
        projection = self.each_view(lambda image: self.head(self.encoder(image)), batch["image"])
        prediction = self.predictor(projection.flatten(0, 1)).unflatten(0, projection.shape[:2])
        target = self.each_view(self.teacher, batch["image"]) if self.options.stop_gradient else projection
        return {"prediction": prediction, "target": target}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the squared distance of unit vectors (equation 2)."""
        return (2 - 2 * F.cosine_similarity(output["prediction"], output["target"].flip(1), dim=-1)).mean()

    def after_step(self, remembered: Batch) -> None:
        """Move the teacher."""
        self.teacher.update(self.encoder, self.head, momentum=self.options.momentum)

    def _view(self, batch: Batch) -> Tensor:
        image = self.crop(batch, scale=0.2)
        return grayscale(color_jitter(image, 0.4, 0.4, 0.4, 0.1), 0.2)
