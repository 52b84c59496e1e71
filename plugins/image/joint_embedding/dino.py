"""DINO (Caron et al., 2021)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import Blur, Crops, MultiCropOptions, Share, UnlikeViewOptions, blur_field
from sslkit.nn import Momentum, Norm, Prototypes, Teacher, mlp, momentum_reason, swapped_prediction, teacher_momentum

_PAPER_MOMENTUM = 0.996


class DINO(PretextTask):
    """Predict an EMA teacher's output for one crop from another crop (DINO; Caron et al., 2021).

    The teacher's output is centered and sharpened: centering keeps one dimension from dominating, sharpening keeps the
    output from becoming uniform. The teacher is exported.
    """

    class Options(UnlikeViewOptions, MultiCropOptions):
        """Options of `dino`."""

        photo_blur: ClassVar[str] = "1/0.1/0.5"  # main_dino.py, DataAugmentationDINO
        blur: Blur = blur_field(photo_blur)
        solarize: Share | Literal["auto"] = Field(
            default="auto", description="Probability that the second large crop is solarized; auto: 0 up to 64 px, else 0.2."
        )
        crops: str = Field(
            default="2+2", pattern=r"^2\+\d\d?$", description="Large and small crops per image (2+8 in the paper)."
        )
        crop_scale: float = Field(
            default=0.4, gt=0, le=1, description="Minimum area of a large crop as a fraction of the image."
        )
        small_scale: float = Field(default=0.4, gt=0, le=1, description="Maximum area of a small crop; the minimum is 0.05.")
        outputs: int = Field(default=1024, ge=2, description="Output width of the head (65,536 in the paper).")
        hidden: int = Field(default=512, ge=1, description="Hidden width of the head (2,048 in the paper).")
        bottleneck: int = Field(default=128, ge=1, description="Width before the last layer (256 in the paper).")
        norm: Norm = Field(
            default="batch", description="Normalization inside the head (none in the paper, whose runs are longer)."
        )
        temperature: float = Field(default=0.1, gt=0, description="Softmax temperature of the student.")
        teacher_temperature: float = Field(
            default=0.04, gt=0, description="Final softmax temperature of the teacher (0.07 in the paper's longer runs)."
        )
        first_teacher_temperature: float = Field(default=0.04, gt=0, description="Initial softmax temperature of the teacher.")
        rise: int = Field(default=30, ge=0, description="Epochs in which the teacher's temperature rises to its final value.")
        centering: float = Field(
            default=0.5,
            ge=0,
            lt=1,
            description="Momentum of the center subtracted from the teacher's output (0.9 in the paper's longer runs).",
        )
        frozen_epochs: int = Field(default=1, ge=0, description="Epochs at the start in which the last layer is frozen.")
        momentum: Momentum = Field(
            default="auto", description="Initial momentum of the teacher, rising to 1; auto: 1 - 10/steps, from 0.9 to 0.996."
        )

    options: Options
    head: nn.Sequential
    center: Tensor
    encoder_inputs: ClassVar = ("image", "small")
    defaults: ClassVar = {
        "optimizer": "adamw",
        "lr": 3e-4,
        "weight_decay": 0.04,
        "weight_decay_end": 0.4,
        "clip": 3.0,
        "clip_by": "parameter",  # utils.py of the authors, `clip_gradients`
        "batch_size": 128,
    }
    paper: ClassVar = Paper(
        source="README of the authors (300 epochs of DeiT-S on 16 GPUs) and main_dino.py",
        settings={
            "size": 224,
            "encoder": "vit_small_patch16_224",
            "encoder_option": {"drop_path_rate": "0.1"},
            "batch_size": 1024,
            "epochs": 300,
            "lr": 5e-4,
            "lr_scale": "linear",
            "warmup": 10 / 300,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "crops": "2+8",
            "solarize": 0.2,
            "outputs": 65_536,
            "hidden": 2048,
            "bottleneck": 256,
            "norm": "none",
            "teacher_temperature": 0.07,
            "centering": 0.9,
            "momentum": 0.996,
        },
        unsupported=(
            "`--norm_last_layer false`: weights of the last layer without unit length",
            "GELU in the head (here ReLU)",
            "a final rate of 1e-6 (here 0)",
        ),
    )

    def build_head(self) -> nn.Module:
        """Build the head: an MLP with a bottleneck, and a last layer with unit-length weights."""
        options = self.options
        widths = [self.encoder.width, options.hidden, options.hidden, options.bottleneck]
        return nn.Sequential(mlp(widths, options.norm), Prototypes(options.bottleneck, options.outputs))

    def setup(self) -> None:
        """Build the teacher and its center."""
        self.teacher = Teacher(self.encoder, self.head, use_batch_statistics=True)
        self.register_buffer("center", torch.zeros(self.options.outputs))
        self.crops = Crops(self.options, self.data, self.encoder)

    def param_groups(self) -> list[dict[str, Any]]:
        """Freeze the last layer at first, while the features adapt to it."""
        return [{"params": self.head[1].parameters(), "frozen_epochs": self.options.frozen_epochs}]

    def transform(self, batch: Batch) -> Batch:
        """Return two large crops, `image` `[B, 2, C, S, S]`, and small ones, `small` `[B, V, C, s, s]`."""
        return self.crops.draw(batch)

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the student's logits of all crops, `[B, 2 + V, K]`, and the teacher's of the large ones, `[B, 2, K]`."""
        features = self.crops.features(lambda views: self.each_view(self.encoder, views), batch)
        student = self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return {"student": student, "teacher": self.each_view(self.teacher, batch["image"])}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the cross-entropy of the teacher's output of a large crop and the student's of every other (equation 3)."""
        return swapped_prediction(output["student"], self._target(output), self.options.temperature)

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the sum of the teacher's outputs, and the number of crops."""
        teacher = output["teacher"].flatten(0, 1)
        return {"sum": teacher.sum(dim=0, keepdim=True), "crops": torch.full((1,), len(teacher), device=teacher.device)}

    def after_step(self, remembered: Batch) -> None:
        """Update the teacher, and the center by the teacher's mean output (equation 4)."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        self.teacher.update(self.encoder, self.head, momentum=momentum)
        mean = remembered["sum"].sum(dim=0) / remembered["crops"].sum()
        self.center.lerp_(mean, 1 - self.options.centering)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often student and teacher agree on a large crop's top output, and the teacher's entropy in nats."""
        target = self._target(output)
        same = (output["student"][:, :2].argmax(dim=2) == target.flip(1).argmax(dim=2)).float().mean(dim=1)
        return {"accuracy": same, "teacher_entropy": torch.special.entr(target).sum(dim=2).mean(dim=1)}

    def reasons(self) -> dict[str, str]:
        """Return what options left on `auto` became."""
        return self.crops.reasons() | momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)

    def exports(self) -> dict[str, nn.Module]:
        """Return the teacher's encoder, which is better than the student's (section 5.2 of the paper)."""
        return {"encoder": self.teacher.parts[0]}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the crops of each image, the large ones first."""
        return self.crops.pictures(batch)

    def _target(self, output: dict[str, Tensor]) -> Tensor:
        options = self.options
        progress = min(1.0, self.clock.epoch / options.rise) if options.rise else 1.0
        temperature = options.first_teacher_temperature + progress * (
            options.teacher_temperature - options.first_teacher_temperature
        )
        return F.softmax((output["teacher"] - self.center) / temperature, dim=-1)
