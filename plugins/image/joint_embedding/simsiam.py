"""SimSiam (Chen & He, 2021)."""

from typing import Any, ClassVar

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import ColorStrength, ViewOptions, Views, color_strength_field
from sslkit.nn import Norm, ProjectorOptions, mlp, negative_cosine


class SimSiam(PretextTask):
    """Predict one view's projection from the other's (SimSiam; Chen & He, 2021).

    There is neither a teacher nor negatives: a bottleneck predictor and the stop-gradient prevent collapse.
    """

    class Options(ProjectorOptions, ViewOptions):
        """Options of `simsiam`."""

        photo_jitter: ClassVar[str] = "0.4/0.4/0.4/0.1"  # main_simsiam.py: "not strengthened"
        color_strength: ColorStrength = color_strength_field(photo_jitter)
        hidden: int = Field(default=512, ge=1, description="Hidden width of the projector (2,048 in the paper).")
        width: int = Field(default=512, ge=1, description="Output width of projector and predictor (2,048 in the paper).")
        bottleneck: int = Field(default=128, ge=1, description="Hidden width of the predictor (512 in the paper).")
        norm: Norm = Field(
            default="batch", description="Normalization inside projector and predictor, and on the projector's output."
        )

    options: Options
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="main_simsiam.py of the authors",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 512,
            "epochs": 100,
            "optimizer": "sgd",
            "lr": 0.05,
            "lr_scale": "linear",
            "weight_decay": 1e-4,
            "warmup": 0.0,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "hidden": 2048,
            "width": 2048,
            "bottleneck": 512,
        },
        unsupported=("views normalized apart (here both in one batch)", "decay of biases and norms"),
    )
    preview_columns: ClassVar = ("view 1", "view 2")

    def build_head(self) -> nn.Module:
        """Build the projector: three layers, with a norm on the output."""
        options = self.options
        widths = [self.encoder.width, options.hidden, options.hidden, options.width]
        # simsiam/builder.py: the norm of the output layer has `affine=False`.
        return mlp(widths, options.norm, last_norm=True, last_affine=False)

    def setup(self) -> None:
        """Build the predictor."""
        options = self.options
        self.predictor = mlp([options.width, options.bottleneck, options.width], options.norm)
        self.views = Views(options, self.data)

    def param_groups(self) -> list[dict[str, Any]]:
        """Fix the predictor's learning rate, so that it adapts to the latest projections (appendix D of the paper)."""
        return [{"params": self.predictor.parameters(), "fixed_lr": True}]

    def transform(self, batch: Batch) -> Batch:
        """Return two views of each image, `[B, 2, C, S, S]`."""
        return {"image": self.views.two(batch)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return projections as targets, detached, and predictions, `[B, 2, D]`."""
        projection = self.each_view(lambda image: self.head(self.encoder(image)), batch["image"])
        prediction = self.predictor(projection.flatten(0, 1)).unflatten(0, projection.shape[:2])
        return {"prediction": prediction, "target": projection.detach()}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the mean negative cosine of each view's prediction and the other view's projection (equation 2)."""
        return negative_cosine(output["prediction"], output["target"].flip(1))

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the cosine similarity of the two projections."""
        first, second = output["target"].unbind(1)
        return {"alignment": F.cosine_similarity(first, second, dim=1)}
