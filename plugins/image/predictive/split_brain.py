"""Predict color from lightness and lightness from color, with an encoder for each."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, PretextTask, SslkitError, TaskOptions, concat
from sslkit.encoders.composed import Concat
from sslkit.image.color_bins import ab_bins, nearest_bin
from sslkit.image.decoders import map_size
from sslkit.image.transforms import flip, random_resized_crop, rgb_to_lab


class SplitBrain(PretextTask):
    """Predict color from lightness and lightness from color, with an encoder for each (Zhang et al., 2017).

    Each encoder is half as wide; side by side they are the encoder that is kept.
    """

    class Options(TaskOptions):
        """Hold the options of split_brain."""

        lightness_bins: int = Field(default=100, ge=2, le=1000, description="Bins of lightness.")
        crop_scale: float = Field(default=0.2, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")

    options: Options
    encoder: Concat
    head: nn.ModuleDict
    bins: Tensor
    reads: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "batch_size": 128}

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build an encoder of lightness and one of color, each half as wide, side by side."""
        if build.data.channels != 3:
            raise SslkitError(f"images of {build.data.channels} channels have no color", "split_brain needs RGB", flag="data")
        return concat(build(select="l", width=0.5), build(select="ab", width=0.5))

    def build_head(self) -> nn.Module:
        """Build a 1×1 convolution on each feature map: from lightness to colors, from color to lightnesses."""
        from_lightness, from_color = self.encoder.encoders
        return nn.ModuleDict(
            {
                "color": nn.Conv2d(from_lightness.width, len(ab_bins()), 1),
                "lightness": nn.Conv2d(from_color.width, self.options.lightness_bins, 1),
            }
        )

    def setup(self) -> None:
        """Find the size of the feature maps, and keep the colors that there are."""
        self.map_size = map_size(self.encoder, torch.zeros(1, 3, self.data.size, self.data.size))
        self.register_buffer("bins", ab_bins().clone(), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, and the bins of its color and lightness at the size of the feature maps, `[B, h, w]` each."""
        image = flip(random_resized_crop(batch["image"], self.data.size, scale=(self.options.crop_scale, 1.0)))
        lab = F.adaptive_avg_pool2d(rgb_to_lab(image), self.map_size)
        count = self.options.lightness_bins
        lightness = (lab[:, 0] * (count / 100)).long().clamp(0, count - 1)
        return {"image": image, "color": nearest_bin(lab[:, 1:], self.bins), "lightness": lightness}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of both, `[B, bins, h, w]`."""
        from_lightness, from_color = self.encoder.encoders
        return {
            "color": self.head["color"](from_lightness.feature_map(batch["image"])),
            "lightness": self.head["lightness"](from_color.feature_map(batch["image"])),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the mean cross-entropy of each."""
        return {name: F.cross_entropy(output[name], batch[name]) for name in ("color", "lightness")}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the share of places whose bin was told right."""
        return {
            f"{name}_accuracy": (output[name].argmax(dim=1) == batch[name]).float().mean(dim=(1, 2))
            for name in ("color", "lightness")
        }
