"""Colorization (Zhang et al., 2016)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, ImageTask, Paper, Run, SslkitError
from sslkit.image.color_bins import ab_bins, annealed_mean, rarity_weights, soft_bins
from sslkit.image.decoders import ConvDecoder, map_size
from sslkit.image.transforms import lab_to_rgb, rgb_to_lab
from sslkit.image.views import CropOptions
from sslkit.nn import Norm
from sslkit.pictures import side_by_side

_PRIOR_IMAGES = 1024  # images from which the color prior is estimated


_GRAY = 0.03  # largest channel difference that compression leaves in gray images


class Colorization(ImageTask):
    """Predict the quantized colors of an image from its lightness (Zhang et al., 2016).

    Rare colors have larger weights; otherwise predictions would be grayish averages of all colors. The encoder takes lightness
    only, which its recipe in the checkpoint records.
    """

    class Options(CropOptions):
        """Options of `colorization`."""

        rebalance: float = Field(
            default=0.5,
            ge=0,
            lt=1,
            description="Share of the color prior in the class weights (1 - λ; 0.5 in the paper); 0: equal weights.",
        )
        norm: Norm = Field(default="batch", description="Normalization inside the decoder.")

    options: Options
    bins: Tensor
    weights: Tensor
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    paper: ClassVar = Paper(
        source="train/solver.prototxt of the authors",
        settings={
            "size": 176,
            "steps": 500_000,
            "lr": 3e-5,
            "betas": "0.9,0.99",
            "weight_decay": 1e-3,
            "warmup": 0.0,
        },
        unsupported=(
            "a network with dilated convolutions",
            "weight decay in the gradient (Adam; here AdamW)",
            "a rate that is divided by ten after 225,000 steps (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("lightness", "image", "prediction")

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build an encoder of lightness; raise SslkitError unless images are RGB."""
        if build.data.channels != 3:
            raise SslkitError(
                f"images with {build.data.channels} channels have no color", "colorization needs RGB", flag="data"
            )
        return build(select="l")

    def build_head(self) -> nn.Module:
        """Build a decoder from the feature map to color logits at a quarter of the image size, as in the paper."""
        self.side = max(self.data.size // 4, 4)
        small = map_size(self.encoder, torch.zeros(1, 3, self.data.size, self.data.size))
        return ConvDecoder(self.encoder.width, small, self.side, len(ab_bins()), self.options.norm)

    def setup(self) -> None:
        """Register the color bins and their weights."""
        self.register_buffer("bins", ab_bins().clone(), persistent=False)
        self.register_buffer("weights", torch.ones(len(ab_bins())))

    def before_epoch(self, run: Run) -> None:
        """Estimate the color prior once, smoothed by the soft encoding with σ = 5 (section 2.2), and set the weights."""
        if self.clock.epoch == 0:
            prior, sample = torch.zeros_like(self.weights), self.center_crop(run.batch(_PRIOR_IMAGES))
            if not (sample.amax(dim=1) - sample.amin(dim=1) > _GRAY).any():
                raise SslkitError(f"none of {len(sample):,} images has a color", "colorization needs color images", flag="data")
            for images in sample.split(64):
                nearest, shares = self._encode_colors(images)
                prior.index_add_(0, nearest.flatten(), shares.flatten().to(prior.dtype))
            self.weights.copy_(rarity_weights(prior / prior.sum(), uniform=1 - self.options.rebalance))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, and the five nearest color bins at each position and their weights, `[B, h, w, 5]`."""
        image = self.crop(batch)
        nearest, shares = self._encode_colors(image)
        return {"image": image, "nearest": nearest, "shares": shares}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the color bins, `[B, Q, h, w]`."""
        logits: Tensor = self.head(self.encoder.feature_map(batch["image"]))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over positions, weighted by the rarity of the nearest color (equations 2 and 3)."""
        log_probabilities = F.log_softmax(output, dim=1).permute(0, 2, 3, 1).gather(3, batch["nearest"])
        cross_entropy = -(log_probabilities * batch["shares"]).sum(dim=3)
        weighted: Tensor = self.weights[batch["nearest"][..., 0]] * cross_entropy
        return weighted.mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy (prediction among the five nearest bins), and the mean distance in ab of the annealed mean."""
        predicted = output.argmax(dim=1)[..., None]
        true = (self.bins[batch["nearest"]] * batch["shares"][..., None]).sum(dim=3).permute(0, 3, 1, 2)
        distance = (annealed_mean(output, self.bins) - true).square().sum(dim=1).sqrt()
        return {
            "accuracy": (predicted == batch["nearest"]).any(dim=3).float().mean(dim=(1, 2)),
            "ab_error": distance.mean(dim=(1, 2)),
        }

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the lightness, the image, and the lightness with the predicted colors."""
        lab = rgb_to_lab(batch["image"])
        columns = [lab[:, :1] / 100, batch["image"]]
        if output is not None:
            ab = F.interpolate(annealed_mean(output, self.bins), size=lab.shape[-2:], mode="bilinear")
            columns.append(lab_to_rgb(torch.cat([lab[:, :1], ab], dim=1)))
        return side_by_side(*columns)

    def _encode_colors(self, image: Tensor) -> tuple[Tensor, Tensor]:
        small = F.interpolate(rgb_to_lab(image)[:, 1:], size=(self.side, self.side), mode="area")
        return soft_bins(small, self.bins)
