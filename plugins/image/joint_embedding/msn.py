"""MSN (Assran et al., 2022)."""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.views import ColorStrength, Crops, MultiCropOptions, color_strength_field
from sslkit.nn import (
    Momentum,
    ProjectorOptions,
    Prototypes,
    Teacher,
    cluster_count,
    mlp,
    momentum_reason,
    msn,
    sinkhorn,
    teacher_momentum,
)

PrototypeCount = Annotated[int, Field(ge=2)]


_MAX_PROTOTYPES, _PAPER_MOMENTUM = 1024, 0.996


class MSN(PretextTask):
    """Match a masked view's prototype assignment to the full image's (MSN; Assran et al., 2022).

    A masked view and small focal views predict an EMA teacher's assignment of an unmasked view; a regularizer spreads the
    predictions over all prototypes.
    """

    class Options(ProjectorOptions, MultiCropOptions):
        """Options of `msn`."""

        photo_jitter: ClassVar[str] = "0.5"  # configs/pretrain/msn_vits16.yaml
        color_strength: ColorStrength = color_strength_field(photo_jitter)
        crops: str = Field(
            default="2+10",
            pattern=r"^2\+\d\d?$",
            description="Target and masked view, and focal views (1 masked, 10 focal in the paper).",
        )
        crop_scale: float = Field(
            default=0.3, gt=0, le=1, description="Minimum area of target and masked view as a fraction of the image."
        )
        small_scale: float = Field(default=0.3, gt=0, le=1, description="Maximum area of a focal view; the minimum is 0.05.")
        drop: float = Field(default=0.15, ge=0, lt=1, description="Fraction of patches dropped from the masked view.")
        prototypes: PrototypeCount | Literal["auto"] = Field(
            default="auto", description="Number of prototypes; auto: one per ten images, at most 1,024 (the paper's value)."
        )
        hidden: int = Field(default=512, ge=1, description="Hidden width of the projector (2,048 in the paper).")
        width: int = Field(default=256, ge=1, description="Output width of the projector (256 in the paper).")
        temperature: float = Field(default=0.1, gt=0, description="Softmax temperature of the predictions.")
        sharpening: float = Field(default=0.25, gt=0, le=1, description="Additional temperature that sharpens the targets.")
        sinkhorn: bool = Field(default=True, description="Balance the targets over all prototypes (Sinkhorn-Knopp).")
        entropy: float = Field(
            default=1.0, ge=0, description="Weight of the entropy of the mean prediction, which is maximized."
        )
        momentum: Momentum = Field(
            default="auto", description="Initial momentum of the teacher, rising to 1; auto: 1 - 10/steps, from 0.9 to 0.996."
        )

    options: Options
    encoder: PatchEncoder
    requires: ClassVar = ("tokens",)
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image", "small")
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.04, "weight_decay_end": 0.4, "batch_size": 128}
    paper: ClassVar = Paper(
        source="configs/pretrain/msn_vits16.yaml of the authors, batches of 1,024 as in the paper",
        settings={
            "size": 224,
            "encoder": "deit_small_patch16_224",
            "batch_size": 1024,
            "epochs": 800,
            "warmup": 15 / 800,
            "clip": 3.0,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "prototypes": 1024,
            "hidden": 2048,
            "momentum": 0.996,
        },
        unsupported=(
            "a teacher's momentum that rises linearly (here as a cosine)",
            "schedules that end after 80% of their length: rate 1e-4, decay 0.37, momentum 0.9992 (here 0, 0.4 and 1)",
            "a warm-up from 2e-4",
            "GELU in the head (here ReLU)",
        ),
    )

    def build_head(self) -> nn.Module:
        """Build the projector: three layers."""
        options = self.options
        return mlp([self.encoder.width, options.hidden, options.hidden, options.width], options.norm)

    def setup(self) -> None:
        """Build the prototypes and the teacher."""
        options = self.options
        self.crops = Crops(options, self.data, self.encoder)
        count = cluster_count(options.prototypes, self.data.samples, _MAX_PROTOTYPES, "prototypes")
        self.prototypes = Prototypes(options.width, count)
        self.teacher = Teacher(self.encoder, self.head, use_batch_statistics=True)
        self.grid = self.encoder.grid(torch.empty(1, self.data.channels, self.data.size, self.data.size))
        patches = self.grid[0] * self.grid[1]
        self.kept = round((1 - options.drop) * patches)
        if not self.kept:
            raise SslkitError(
                f"dropping {options.drop} of {patches} patches leaves none", "use a smaller fraction", flag="drop"
            )

    def param_groups(self) -> list[dict[str, Any]]:
        """Decay no prototypes (msn_train.py, `WD_exclude`): at unit length, decay would raise their rate."""
        return [{"params": self.prototypes.parameters(), "weight_decay": 0.0}]

    def transform(self, batch: Batch) -> Batch:
        """Return target and masked view `[B, 2, C, S, S]`, focal views `small` `[B, V, C, s, s]`, and patches to `keep`."""
        order = torch.rand(len(batch["canvas"]), self.grid[0] * self.grid[1], device=batch["canvas"].device).argsort(dim=1)
        return {**self.crops.draw(batch), "keep": order[:, : self.kept]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return projections of masked and focal views, `[B, 1 + V, D]`, and the teacher's of the target view, `[B, D]`."""
        whole, masked = batch["image"].unbind(1)
        features = self.encoder.pool(self.encoder.tokens(masked, keep=batch["keep"]))[:, None]
        if self.crops.small:
            features = torch.cat([features, self.each_view(self.encoder, batch["small"])], dim=1)
        anchor = self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return {"anchor": anchor, "target": self.teacher(whole)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy with the targets, and the weighted entropy gap of the mean prediction (equation 1)."""
        terms = msn(self.prototypes(output["anchor"]), self._target(output), self.options.temperature)
        return {**terms, "entropy_gap": self.options.entropy * terms["entropy_gap"]}

    def after_step(self, remembered: Batch) -> None:
        """Update the teacher."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        self.teacher.update(self.encoder, self.head, momentum=momentum)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often the masked view is assigned to the target's prototype."""
        target, scores = self._target(output), self.prototypes(output["anchor"][:, 0])
        return {"accuracy": (target.argmax(dim=1) == scores.argmax(dim=1)).float()}

    def reasons(self) -> dict[str, str]:
        """Return what options left on `auto` became."""
        reasons = self.crops.reasons() | momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        if self.options.prototypes == "auto":
            reasons["prototypes"] = f"{self.prototypes.out_features}: for {self.data.samples:,} images"
        return reasons

    def exports(self) -> dict[str, nn.Module]:
        """Return the teacher's encoder, which the authors evaluate."""
        return {"encoder": self.teacher.parts[0]}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the target, masked and focal views of each image, with dropped patches in gray."""
        whole, masked = batch["image"].unbind(1)
        visible = torch.zeros(len(whole), self.grid[0] * self.grid[1], device=whole.device).scatter_(1, batch["keep"], 1.0)
        visible = F.interpolate(visible.view(-1, 1, *self.grid), size=whole.shape[-2:])
        large = torch.stack([whole, torch.where(visible > 0, masked, 0.5)], dim=1)
        return self.crops.pictures({**batch, "image": large})

    def _target(self, output: dict[str, Tensor]) -> Tensor:
        """Return the teacher's sharpened prototype assignments, `[B, K]`."""
        with torch.no_grad():
            options = self.options
            scores = self.prototypes(output["target"]) / options.temperature
            target = F.softmax(scores / options.sharpening, dim=-1)
            return sinkhorn(target.clamp(min=1e-30).log(), 1.0, 3) if options.sinkhorn else target
