"""BYOL (Grill et al., 2020)."""

from typing import ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import UnlikeViewOptions, Views
from sslkit.nn import Momentum, Norm, ProjectorOptions, Teacher, mlp, momentum_reason, negative_cosine, teacher_momentum

_PAPER_MOMENTUM = 0.996


class BYOL(PretextTask):
    """Predict an EMA teacher's projection of another view (BYOL; Grill et al., 2020).

    There are no negatives: the predictor and the slow teacher prevent collapse.
    """

    class Options(ProjectorOptions, UnlikeViewOptions):
        """Options of `byol`."""

        crop_scale: float = Field(
            default=0.2, gt=0, le=1, description="Minimum crop area as a fraction of the image (0.08 in the paper)."
        )
        hidden: int = Field(default=512, ge=1, description="Hidden width of projector and predictor (4,096 in the paper).")
        width: int = Field(default=128, ge=1, description="Output width of projector and predictor (256 in the paper).")
        norm: Norm = Field(default="batch", description="Normalization inside projector and predictor.")
        momentum: Momentum = Field(
            default="auto", description="Initial momentum of the teacher, rising to 1; auto: 1 - 10/steps, from 0.9 to 0.996."
        )

    options: Options
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 1e-3, "batch_size": 256}
    paper: ClassVar = Paper(
        source="section 3.3 and appendices A, B of the paper",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 4096,
            "epochs": 1000,
            "optimizer": "lars",
            "lr": 0.2,
            "lr_scale": "linear",
            "weight_decay": 1.5e-6,
            "warmup": 10 / 1000,
            "crop_scale": 0.08,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "momentum": 0.996,
            "hidden": 4096,
            "width": 256,
        },
        unsupported=("views normalized apart (here both in one batch)",),
    )
    preview_columns: ClassVar = ("view 1", "view 2")

    def build_head(self) -> nn.Module:
        """Build the projector."""
        return mlp([self.encoder.width, self.options.hidden, self.options.width], self.options.norm)

    def setup(self) -> None:
        """Build the predictor and the teacher."""
        options = self.options
        self.predictor = mlp([options.width, options.hidden, options.width], options.norm)
        self.teacher = Teacher(self.encoder, self.head, use_batch_statistics=True)
        self.views = Views(options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, with different blur and solarization, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return predictions, and the teacher's projections as targets, `[B, 2, D]`."""
        return {
            "prediction": self.each_view(lambda image: self.predictor(self.head(self.encoder(image))), batch["image"]),
            "target": self.each_view(self.teacher, batch["image"]),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the squared distances of unit vectors, each view's prediction to the other's target (equations 2 and 3)."""
        # The mean over both directions, times two: equation 3 is their sum.
        return 4 + 4 * negative_cosine(output["prediction"], output["target"].flip(1))

    def after_step(self, remembered: Batch) -> None:
        """Update the teacher."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        self.teacher.update(self.encoder, self.head, momentum=momentum)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of the teacher's projections of the two views."""
        first, second = output["target"].unbind(1)
        return {"alignment": F.cosine_similarity(first, second, dim=1)}

    def reasons(self) -> dict[str, str]:
        """Return what options left on `auto` became."""
        return momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
