"""Split-brain autoencoder (Zhang et al., 2017)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, ImageTask, SslkitError, concat
from sslkit.encoders.composed import Concat
from sslkit.image.color_bins import ab_bins, nearest_bin
from sslkit.image.decoders import map_size
from sslkit.image.transforms import rgb_to_lab
from sslkit.image.views import CropOptions, CropScale


class SplitBrain(ImageTask):
    """Predict color from lightness and vice versa with two encoders (Zhang et al., 2017).

    Each encoder has half the width; the exported encoder concatenates the features of both.
    """

    class Options(CropOptions):
        """Options of `split_brain`."""

        lightness_bins: int = Field(default=100, ge=2, le=1000, description="Bins of lightness (100 in the paper).")
        crop_scale: CropScale = 0.2

    options: Options
    encoder: Concat
    head: nn.ModuleDict
    bins: Tensor
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 2e-3, "weight_decay": 0.05, "batch_size": 128}

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build an encoder of lightness and one of color, each of half the width, and concatenate them."""
        if build.data.channels != 3:
            raise SslkitError(f"images with {build.data.channels} channels have no color", "split_brain needs RGB", flag="data")
        return concat(build(select="l", width=0.5), build(select="ab", width=0.5))

    def build_head(self) -> nn.Module:
        """Build a 1×1 convolution on each feature map: from lightness to color bins, from color to lightness bins."""
        from_lightness, from_color = self.encoder.encoders
        return nn.ModuleDict(
            {
                "color": nn.Conv2d(from_lightness.width, len(ab_bins()), 1),
                "lightness": nn.Conv2d(from_color.width, self.options.lightness_bins, 1),
            }
        )

    def setup(self) -> None:
        """Determine the size of the feature maps, and register the color bins."""
        self.map_size = map_size(self.encoder, torch.zeros(1, 3, self.data.size, self.data.size))
        self.register_buffer("bins", ab_bins().clone(), persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, and its color and lightness bins at the size of the feature maps, `[B, h, w]` each."""
        image = self.crop(batch)
        lab = F.adaptive_avg_pool2d(rgb_to_lab(image), self.map_size)
        count = self.options.lightness_bins
        lightness = (lab[:, 0] * (count / 100)).long().clamp(0, count - 1)
        return {"image": image, "color": nearest_bin(lab[:, 1:], self.bins), "lightness": lightness}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return logits of color and lightness, `[B, bins, h, w]` each."""
        from_lightness, from_color = self.encoder.encoders
        return {
            "color": self.head["color"](from_lightness.feature_map(batch["image"])),
            "lightness": self.head["lightness"](from_color.feature_map(batch["image"])),
        }

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the mean cross-entropy of color and of lightness."""
        return {name: F.cross_entropy(output[name], batch[name]) for name in ("color", "lightness")}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy over positions, for color and for lightness."""
        return {
            f"{name}_accuracy": (output[name].argmax(dim=1) == batch[name]).float().mean(dim=(1, 2))
            for name in ("color", "lightness")
        }
