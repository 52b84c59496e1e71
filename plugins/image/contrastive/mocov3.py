"""MoCo v3 (Chen et al., 2021)."""

import math
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import UnlikeViewOptions, Views
from sslkit.nn import (
    Momentum,
    Norm,
    ProjectorOptions,
    Teacher,
    in_batch_info_nce,
    mlp,
    momentum_reason,
    teacher_momentum,
)

Temperature = Annotated[float, Field(gt=0)]


_PAPER_MOMENTUM = 0.99


class MoCoV3(PretextTask):
    """Match a view to its EMA teacher's key within the batch (MoCo v3; Chen et al., 2021).

    Large batches replace the queue. The patch embedding of a vision transformer stays random, which keeps training stable.
    """

    class Options(ProjectorOptions, UnlikeViewOptions):
        """Options of `mocov3`."""

        temperature: Temperature | Literal["auto"] = Field(
            default="auto", description="Temperature of the loss; auto: 0.2 for encoders with tokens, 1 for others."
        )
        momentum: Momentum = Field(
            default="auto", description="Initial momentum of the teacher, rising to 1; auto: 1 - 10/steps, from 0.9 to 0.99."
        )
        hidden: int = Field(default=512, ge=1, description="Hidden width of projector and predictor (4,096 in the paper).")
        width: int = Field(default=128, ge=1, description="Output width of projector and predictor (256 in the paper).")
        norm: Norm = Field(
            default="batch",
            description="Normalization inside projector and predictor, and on the projector's output (with tokens: on both).",
        )

    options: Options
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="CONFIG.md (ViT-Small, 300 epochs) and main_moco.py of the authors",
        settings={
            "size": 224,
            "encoder": "vit_small_patch16_224",
            "encoder_option": {"num_heads": "12"},
            "batch_size": 4096,
            "epochs": 300,
            "lr": 1.5e-4,
            "lr_scale": "linear",
            "weight_decay": 0.1,
            "warmup": 40 / 300,
            "crop_scale": 0.08,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "momentum": 0.99,
            "hidden": 4096,
            "width": 256,
        },
        unsupported=(
            "fixed sine-cosine positions in the encoder (vits.py)",
            "a teacher that normalizes by the statistics of the batch",
            "views normalized apart (here both in one batch)",
            "decay of biases and norms",
        ),
    )
    preview_columns: ClassVar = ("view 1", "view 2")

    def build_head(self) -> nn.Module:
        """Build the projector: three layers for an encoder with tokens, two for others."""
        options = self.options
        # moco/builder.py, MoCo_ViT and MoCo_ResNet: the last norm has no scale and shift.
        hidden = [options.hidden] * (2 if "tokens" in self.encoder.provides else 1)
        return mlp([self.encoder.width, *hidden, options.width], options.norm, last_norm=True, last_affine=False)

    def setup(self) -> None:
        """Freeze the patch embedding, if any, and build the predictor and the teacher."""
        options = self.options
        for name, parameter in self.encoder.named_parameters():
            if "patch_embed" in name:
                parameter.requires_grad_(False)
        # The same file: a norm on the predictor's output, for a vision transformer only.
        self.predictor = mlp(
            [options.width, options.hidden, options.width],
            options.norm,
            last_norm="tokens" in self.encoder.provides,
            last_affine=False,
        )
        self.teacher = Teacher(self.encoder, self.head)
        self.views = Views(options, self.data)

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, with different blur and solarization, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors of both views, `query` and `key`, `[B, 2, D]`."""
        query = self.each_view(lambda image: self.predictor(self.head(self.encoder(image))), batch["image"])
        return {
            "query": F.normalize(query, dim=2),
            "key": F.normalize(self.each_view(self.teacher, batch["image"]), dim=2),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return InfoNCE of each view's queries against the other's keys, times 2T (algorithm 1)."""
        return 2 * self.temperature * self._info_nce(output).sum(dim=1).mean()

    def after_step(self, remembered: Batch) -> None:
        """Update the teacher."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)
        self.teacher.update(self.encoder, self.head, momentum=momentum)

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of query and key, and the bound log N - loss on their mutual information, in nats."""
        alignment = (output["query"] * output["key"].flip(1)).sum(dim=2).mean(dim=1)
        return {"alignment": alignment, "information_bound_nats": math.log(len(alignment)) - self._info_nce(output).mean(dim=1)}

    def reasons(self) -> dict[str, str]:
        """Return what options left on `auto` became."""
        options = self.options
        reasons = (
            {}
            if options.temperature != "auto"
            else {"temperature": f"{self.temperature:g}: the paper's value for this kind of encoder"}
        )
        return reasons | momentum_reason(options.momentum, self.clock, _PAPER_MOMENTUM, to_one=True)

    @property
    def temperature(self) -> float:
        """Return the temperature in use."""
        temperature = self.options.temperature
        return temperature if temperature != "auto" else 0.2 if "tokens" in self.encoder.provides else 1.0

    def _info_nce(self, output: dict[str, Tensor]) -> Tensor:
        """Return InfoNCE of both views, `[B, 2]`."""
        pairs = zip(output["query"].unbind(1), output["key"].flip(1).unbind(1), strict=True)
        return torch.stack([in_batch_info_nce(query, key, self.temperature) for query, key in pairs], dim=1)
