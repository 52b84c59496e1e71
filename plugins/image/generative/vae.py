"""Variational autoencoder (Kingma & Welling, 2014)."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask
from sslkit.image.decoders import CodeDecoder
from sslkit.image.views import CropOptions
from sslkit.nn import Norm, error_share
from sslkit.pictures import side_by_side

_MAX_LOG_VARIANCE = 10.0  # absolute value: exp() of more overflows half precision


class VAE(ImageTask):
    """Reconstruct an image from a sampled, near-normal code (VAE; Kingma & Welling, 2014).

    The encoder predicts mean and variance of the code, whose divergence from a standard normal is penalized.
    """

    class Options(CropOptions):
        """Options of `vae`."""

        code: int = Field(default=64, ge=1, description="Width of the code.")
        beta: float = Field(default=1.0, ge=0, description="Weight of the divergence from the prior (β; Higgins et al., 2017).")
        deviation: float = Field(
            default=0.1,
            gt=0,
            description="Standard deviation of pixels around the reconstruction; less makes codes more informative.",
        )
        norm: Norm = Field(default="batch", description="Normalization inside the decoder.")

    options: Options
    head: nn.ModuleDict
    visible_targets: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    preview_columns: ClassVar = ("image", "reconstruction", "sample")

    def build_head(self) -> nn.Module:
        """Build the layer to the mean and log variance of the code, and the decoder."""
        options, data, width = self.options, self.data, self.encoder.width
        decoder = CodeDecoder(options.code, width, data.size, data.channels, options.norm)
        return nn.ModuleDict({"code": nn.Linear(width, 2 * options.code), "decoder": decoder})

    def transform(self, batch: Batch) -> Batch:
        """Return the image, `[B, C, S, S]`, and the noise of its code, `[B, D]`."""
        image = self.crop(batch)
        return {"image": image, "noise": torch.randn(len(image), self.options.code, device=image.device)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean and log variance of the code, `[B, D]`, and the reconstruction from a sampled code."""
        mean, log_variance = self.head["code"](self.encoder(batch["image"])).chunk(2, dim=1)
        log_variance = log_variance.clamp(-_MAX_LOG_VARIANCE, _MAX_LOG_VARIANCE)
        code = mean + (log_variance / 2).exp() * batch["noise"]
        return {"mean": mean, "log_variance": log_variance, "reconstruction": self.head["decoder"](code)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the negative evidence lower bound in nats per value of the image, without constants (equation 10)."""
        error = (output["reconstruction"] - batch["image"]).square().mean()
        values = batch["image"][0].numel()
        return {
            "reconstruction": error / (2 * self.options.deviation**2),
            "divergence": self.options.beta * self._divergence(output).mean() / values,
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to predicting the mean color, and the code's divergence in nats."""
        return {
            "error_share": error_share(output["reconstruction"], batch["image"]),
            "code_information_nats": self._divergence(output),
        }

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, its reconstruction, and a sample from the prior."""
        columns = [batch["image"]]
        if output is not None:
            columns += [output["reconstruction"].clamp(0, 1), self.head["decoder"](batch["noise"]).clamp(0, 1)]
        return side_by_side(*columns)

    @staticmethod
    def _divergence(output: dict[str, Tensor]) -> Tensor:
        """Return the KL divergence of each code from a standard normal in nats, `[B]` (appendix B)."""
        mean, log_variance = output["mean"], output["log_variance"]
        return (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
