"""Predict the colors of an image from its lightness."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, PretextTask, Run, SslkitError, TaskOptions
from sslkit.image.color_bins import ab_bins, annealed_mean, rarity_weights, soft_bins
from sslkit.image.decoders import ConvDecoder, map_size
from sslkit.image.transforms import center_view, flip, lab_to_rgb, random_resized_crop, rgb_to_lab
from sslkit.nn import Norm
from sslkit.pictures import side_by_side

_MEASURED = 1024  # images that the prior is measured on


_GRAY = 0.03  # largest difference of channels that compression leaves in gray images


class Colorization(PretextTask):
    """Predict the colors of an image from its lightness, as classes (Zhang et al., 2016).

    Rare colors count more, or everything would be painted in the gray between all colors. The encoder sees lightness
    only, and the checkpoint says so.
    """

    class Options(TaskOptions):
        """Hold colorization's options."""

        rebalance: float = Field(
            default=0.5,
            ge=0,
            lt=1,
            description="Share of the prior in the weights of colors: 0 counts all alike, 1 rare ones most.",
        )
        crop_scale: float = Field(default=0.5, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")
        norm: Norm = Field(default="batch", description="Norm inside the decoder.")

    options: Options
    bins: Tensor
    weights: Tensor
    reads: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 128}
    preview_columns: ClassVar = ("lightness", "true colors", "colors as told")

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build an encoder of lightness."""
        if build.data.channels != 3:
            raise SslkitError(f"images of {build.data.channels} channels have no color", "colorization needs RGB", flag="data")
        return build(select="l")

    def build_head(self) -> nn.Module:
        """Build a decoder from the feature map to the colors of an image a quarter of the size, as in the paper."""
        self.side = max(self.data.size // 4, 4)
        small = map_size(self.encoder, torch.zeros(1, 3, self.data.size, self.data.size))
        return ConvDecoder(self.encoder.width, small, self.side, len(ab_bins()), self.options.norm)

    def setup(self) -> None:
        """Keep the colors that there are, and room for their weights."""
        self.register_buffer("bins", ab_bins().clone(), persistent=False)
        self.register_buffer("weights", torch.ones(len(ab_bins())))

    def before_epoch(self, run: Run) -> None:
        """Measure how frequent colors are, once (section 2.2; the soft encoding smooths by σ = 5)."""
        if self.clock.epoch == 0:
            prior, measured = torch.zeros_like(self.weights), run.batch(_MEASURED)["image"]
            if not (measured.amax(dim=1) - measured.amin(dim=1) > _GRAY).any():
                raise SslkitError(
                    f"none of {len(measured):,} images has a color", "colorization needs color images", flag="data"
                )
            for images in measured.split(64):
                nearest, shares = self._classes(center_view(images, self.data.size))
                prior.index_add_(0, nearest.flatten(), shares.flatten().to(prior.dtype))
            self.weights.copy_(rarity_weights(prior / prior.sum(), uniform=1 - self.options.rebalance))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, and the five nearest colors of each place in it and their shares, `[B, h, w, 5]`."""
        image = flip(random_resized_crop(batch["image"], self.data.size, scale=(self.options.crop_scale, 1.0)))
        nearest, shares = self._classes(image)
        return {"image": image, "nearest": nearest, "shares": shares}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the colors, `[B, Q, h, w]`."""
        logits: Tensor = self.head(self.encoder.feature_map(batch["image"]))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy over places, each weighted by how rare its nearest color is (equations 2 and 3)."""
        said = F.log_softmax(output, dim=1).permute(0, 2, 3, 1).gather(3, batch["nearest"])
        each = -(said * batch["shares"]).sum(dim=3)
        weighted: Tensor = self.weights[batch["nearest"][..., 0]] * each
        return weighted.mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of places whose color is among the five nearest, and how far, in ab, the mean of colors is off."""
        told = output.argmax(dim=1)[..., None]
        true = (self.bins[batch["nearest"]] * batch["shares"][..., None]).sum(dim=3).permute(0, 3, 1, 2)
        off = (annealed_mean(output, self.bins) - true).square().sum(dim=1).sqrt()
        return {
            "accuracy": (told == batch["nearest"]).any(dim=3).float().mean(dim=(1, 2)),
            "off": off.mean(dim=(1, 2)),
        }

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return lightness, the true colors, and the lightness in the colors that were told."""
        lab = rgb_to_lab(batch["image"])
        columns = [lab[:, :1] / 100, batch["image"]]
        if output is not None:
            ab = F.interpolate(annealed_mean(output, self.bins), size=lab.shape[-2:], mode="bilinear")
            columns.append(lab_to_rgb(torch.cat([lab[:, :1], ab], dim=1)))
        return side_by_side(*columns)

    def _classes(self, image: Tensor) -> tuple[Tensor, Tensor]:
        small = F.interpolate(rgb_to_lab(image)[:, 1:], size=(self.side, self.side), mode="area")
        return soft_bins(small, self.bins)
