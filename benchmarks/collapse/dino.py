"""DINO in small; `--no-centering` lets it collapse."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, TaskOptions
from sslkit.image.transforms import color_jitter, grayscale
from sslkit.nn import Teacher, mlp


class SmallDINO(ImageTask):
    """Tell the teacher's prototype of one view from the other view (Caron et al., 2021), in small."""

    class Options(TaskOptions):
        """Hold what keeps DINO from collapsing."""

        centering: bool = Field(default=True, description="Take the mean of past outputs off the teacher's.")
        teacher_temperature: float = Field(default=0.04, gt=0, description="Temperature of the teacher.")
        prototypes: int = Field(default=256, ge=2, description="Prototypes that are told apart.")
        momentum: float = Field(default=0.9, ge=0, lt=1, description="Momentum of the teacher.")

    options: Options
    center: Tensor
    defaults: ClassVar = {"optimizer": "adamw", "lr": 3e-4, "weight_decay": 0.05, "batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build projector and prototypes."""
        return nn.Sequential(mlp([self.encoder.width, 256, 64], "batch"), Prototypes(64, self.options.prototypes))

    def setup(self) -> None:
        """Build the teacher and its center."""
        self.teacher = Teacher(self.encoder, self.head)
        self.register_buffer("center", torch.zeros(self.options.prototypes))

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image."""
        return {"image": torch.stack([self._view(batch) for _ in range(2)], dim=1)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return what student and teacher say, `[B, 2, 256]`."""
        student = self.each_view(lambda image: self.head(self.encoder(image)), batch["image"])
        return {"student": student, "teacher": self.each_view(self.teacher, batch["image"])}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the cross-entropy of each view's student with the other's teacher."""
        target = ((output["teacher"] - self.center) / self.options.teacher_temperature).softmax(dim=-1).flip(1)
        return -(target * (output["student"] / 0.1).log_softmax(dim=-1)).sum(dim=-1).mean()

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the teacher's outputs."""
        return {"teacher": output["teacher"].mean(dim=1)}

    def after_step(self, remembered: Batch) -> None:
        """Move teacher and center."""
        self.teacher.update(self.encoder, self.head, momentum=self.options.momentum)
        if self.options.centering:
            self.center.lerp_(remembered["teacher"].mean(dim=0), 0.5)  # 0.1 in the paper, whose runs are longer

    def _view(self, batch: Batch) -> Tensor:
        image = self.crop(batch, scale=0.2)
        return grayscale(color_jitter(image, 0.4, 0.4, 0.4, 0.1), 0.2)


class Prototypes(nn.Linear):
    """Compare with prototypes of length one, as DINO's weight-normed last layer does."""

    def forward(self, x: Tensor) -> Tensor:
        """Return cosines `[B, prototypes]`."""
        return F.linear(F.normalize(x, dim=1), F.normalize(self.weight, dim=1))
