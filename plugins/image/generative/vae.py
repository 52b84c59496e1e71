"""Paint an image again from a code that is drawn, close to noise."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.decoders import CodeDecoder
from sslkit.image.views import CropOptions, random_crop_view
from sslkit.nn import Norm, error_share
from sslkit.pictures import side_by_side

_MOST = 10.0  # of a log variance, either way: exp() of more overflows half precision


class VAE(PretextTask):
    """Paint an image again from a code that is drawn, close to noise (variational autoencoder; Kingma & Welling, 2014).

    The encoder says where the code lies and how surely; what it says costs as much as it differs from a standard normal.
    """

    class Options(CropOptions):
        """Hold the options of vae."""

        code: int = Field(default=64, ge=1, description="Width of the code.")
        beta: float = Field(default=1.0, ge=0, description="Weight of the divergence from the prior (β; Higgins et al., 2017).")
        deviation: float = Field(
            default=0.1, gt=0, description="Standard deviation of pixels about what is painted: less lets the code say more."
        )
        norm: Norm = Field(default="batch", description="Norm inside the decoder.")

    options: Options
    head: nn.ModuleDict
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    preview_columns: ClassVar = ("image", "painted", "painted of noise")

    def build_head(self) -> nn.Module:
        """Build the layer to mean and log variance of the code, and the decoder."""
        options, data, width = self.options, self.data, self.encoder.width
        decoder = CodeDecoder(options.code, width, data.size, data.channels, options.norm)
        return nn.ModuleDict({"code": nn.Linear(width, 2 * options.code), "decoder": decoder})

    def transform(self, batch: Batch) -> Batch:
        """Return the image, `[B, C, S, S]`, and the noise of its code, `[B, D]`."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        return {"image": image, "noise": torch.randn(len(image), self.options.code, device=image.device)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return mean and log variance of the code, `[B, D]`, and the image painted of a code drawn so."""
        mean, log_variance = self.head["code"](self.encoder(batch["image"])).chunk(2, dim=1)
        log_variance = log_variance.clamp(-_MOST, _MOST)
        code = mean + (log_variance / 2).exp() * batch["noise"]
        return {"mean": mean, "log_variance": log_variance, "painted": self.head["decoder"](code)}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return minus the lower bound in nats for each value of the image, without constants (equation 10)."""
        error = (output["painted"] - batch["image"]).square().mean()
        values = batch["image"][0].numel()
        return {
            "reconstruction": error / (2 * self.options.deviation**2),
            "divergence": self.options.beta * self._divergence(output).mean() / values,
        }

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the error as a share of what the mean color would make, and the nats that the code tells."""
        return {"error_share": error_share(output["painted"], batch["image"]), "code_nats": self._divergence(output)}

    def preview(self, batch: Batch, output: dict[str, Tensor] | None) -> Tensor:
        """Return the image, what is painted of its code, and what is painted of noise."""
        columns = [batch["image"]]
        if output is not None:
            columns += [output["painted"].clamp(0, 1), self.head["decoder"](batch["noise"]).clamp(0, 1)]
        return side_by_side(*columns)

    @staticmethod
    def _divergence(output: dict[str, Tensor]) -> Tensor:
        """Return the divergence of each code from a standard normal, in nats, `[B]` (appendix B)."""
        mean, log_variance = output["mean"], output["log_variance"]
        return (mean.square() + log_variance.exp() - log_variance - 1).sum(dim=1) / 2
