"""Say of a part of the patches which prototypes the whole belongs to."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.views import Crops, MultiCropOptions
from sslkit.nn import Momentum, Norm, Prototypes, Teacher, cluster_count, mlp, momentum_reason, msn, sinkhorn, teacher_momentum

Count = Annotated[int, Field(ge=2)]


_MOST, _PAPER_MOMENTUM = 1024, 0.996


class MSN(PretextTask):
    """Say of a part of the patches which prototypes the whole belongs to (Assran et al., 2022).

    A masked view and small focal ones are compared with what a teacher says of the whole; all prototypes are to be used.
    """

    class Options(MultiCropOptions):
        """Hold msn's options."""

        crops: str = Field(
            default="2+10", pattern=r"^2\+\d\d?$", description="Target and masked view, and focal ones (1 + 10 in the paper)."
        )
        crop_scale: float = Field(default=0.3, gt=0, le=1, description="Smallest share of the image in the large views.")
        small_scale: float = Field(default=0.3, gt=0, le=1, description="Largest share in a focal view; the smallest is 0.05.")
        drop: float = Field(default=0.15, ge=0, lt=1, description="Share of patches that the masked view lacks.")
        prototypes: Count | Literal["auto"] = Field(
            default="auto", description="Prototypes; auto: one for ten images, the paper's 1,024 at most."
        )
        hidden: int = Field(default=512, ge=1, description="Hidden width of the projector (2,048 in the paper).")
        width: int = Field(default=256, ge=1, description="Width of the vectors that are compared with prototypes.")
        norm: Norm = Field(default="batch", description="Norm inside the projector.")
        temperature: float = Field(default=0.1, gt=0, description="Temperature of what is said.")
        sharpening: float = Field(default=0.25, gt=0, le=1, description="Temperature that sharpens the targets further.")
        sinkhorn: bool = Field(default=True, description="Let targets use all prototypes alike (Sinkhorn-Knopp).")
        entropy: float = Field(default=1.0, ge=0, description="Weight of the mean's entropy: prototypes used over all.")
        momentum: Momentum = Field(
            default="auto", description="First momentum of the teacher, rising to 1; auto: 1 - 10/steps, from 0.9 to 0.996."
        )

    options: Options
    encoder: PatchEncoder
    reads: ClassVar = ("tokens",)
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.04, "weight_decay_end": 0.4, "batch_size": 128}

    def build_head(self) -> nn.Module:
        """Build the projector: three layers."""
        options = self.options
        return mlp([self.encoder.width, options.hidden, options.hidden, options.width], options.norm)

    def setup(self) -> None:
        """Build prototypes and teacher."""
        options = self.options
        self.crops = Crops(options, self.data, self.encoder)
        self.prototypes = Prototypes(options.width, cluster_count(options.prototypes, self.data.samples, _MOST, "prototypes"))
        self.teacher = Teacher(self.encoder, self.head, use_batch_statistics=True)
        self.grid = self.encoder.grid(torch.empty(1, self.data.channels, self.data.size, self.data.size))
        patches = self.grid[0] * self.grid[1]
        self.kept = round((1 - options.drop) * patches)
        if not self.kept:
            raise SslkitError(f"{options.drop} of {patches} patches leaves none", "give less", flag="drop")

    def transform(self, batch: Batch) -> Batch:
        """Return target and masked view `[B, 2, C, S, S]`, focal ones `small` `[B, V, C, s, s]`, and what is kept, `[B, K]`."""
        order = torch.rand(len(batch["image"]), self.grid[0] * self.grid[1], device=batch["image"].device).argsort(dim=1)
        return {**self.crops.draw(batch["image"]), "keep": order[:, : self.kept]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the vectors of masked and focal views, `[B, 1 + V, D]`, and the teacher's of the whole, `[B, D]`."""
        whole, masked = batch["image"].unbind(1)
        features = self.encoder.pool(self.encoder.tokens(masked, keep=batch["keep"]))[:, None]
        if self.crops.small:
            features = torch.cat([features, self.each_view(self.encoder, batch["small"])], dim=1)
        anchor = self.head(features.flatten(0, 1)).unflatten(0, features.shape[:2])
        return {"anchor": anchor, "target": self.teacher(whole)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy with the targets, and how far the mean is from using all prototypes (equation 1)."""
        terms = msn(self.prototypes(output["anchor"]), self._target(output), self.options.temperature)
        return {**terms, "uneven": self.options.entropy * terms["uneven"]}

    def after_step(self, seen: Batch) -> None:
        """Let the teacher follow."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        self.teacher.update(self.encoder, self.head, momentum=momentum)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often the masked view is given the target's prototype."""
        target, said = self._target(output), self.prototypes(output["anchor"][:, 0])
        return {"accuracy": (target.argmax(dim=1) == said.argmax(dim=1)).float()}

    def reasons(self) -> dict[str, str]:
        """Say what `auto` became."""
        said = self.crops.reasons() | momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        if self.options.prototypes == "auto":
            said["prototypes"] = f"{self.prototypes.out_features}: for {self.data.samples:,} images"
        return said

    def exports(self) -> dict[str, nn.Module]:
        """Keep the teacher's encoder, as the authors evaluate it."""
        return {"encoder": self.teacher.parts[0]}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return target, masked and focal views of each image, patches that are lacking in gray."""
        whole, masked = batch["image"].unbind(1)
        seen = torch.zeros(len(whole), self.grid[0] * self.grid[1], device=whole.device).scatter_(1, batch["keep"], 1.0)
        seen = F.interpolate(seen.view(-1, 1, *self.grid), size=whole.shape[-2:])
        shown = torch.stack([whole, torch.where(seen > 0, masked, 0.5)], dim=1)
        return self.crops.pictures({**batch, "image": shown})

    def _target(self, output: dict[str, Tensor]) -> Tensor:
        """Return sharpened assignments of the teacher's vectors, `[B, K]`."""
        with torch.no_grad():
            options = self.options
            scores = self.prototypes(output["target"]) / options.temperature
            target = F.softmax(scores / options.sharpening, dim=-1)
            return sinkhorn(target.clamp(min=1e-30).log(), 1.0, 3) if options.sinkhorn else target
