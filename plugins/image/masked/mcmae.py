"""MCMAE (Gao et al., 2022)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper
from sslkit.image.decoders import PatchDecoder, PatchDecoderOptions
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.transforms import (
    denormalize_patches,
    masked_patch_count,
    normalize_patches,
    patchify,
    preview_masked,
    random_mask,
    split_patches,
    take_patches,
)
from sslkit.image.views import CropOptions, CropScale


class MCMAE(ImageTask):
    """Reconstruct masked patches with a masked convolutional ViT (MCMAE; Gao et al., 2022).

    The mask of the last grid is applied at every earlier resolution, so that nothing leaks through a convolution.
    """

    class Options(CropOptions, PatchDecoderOptions):
        """Options of `mcmae`."""

        mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Fraction of masked patches (0.75 in the paper).")
        crop_scale: CropScale = 0.2

    options: Options
    encoder: PatchEncoder
    requires: ClassVar = ("masked_convolutions",)
    masked: ClassVar = True
    defaults: ClassVar = {"encoder": "convvit_micro", "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="PRETRAIN.md of the authors, on 24 GPUs",
        settings={
            "batch_size": 3072,
            "epochs": 1600,
            "lr": 1.5e-4,
            "lr_scale": "linear",
            "betas": "0.9,0.95",
            "warmup": 40 / 1600,
            "decoder_depth": 8,
            "decoder_width": 512,
        },
        unsupported=(
            "ConvViT-B on images of 224 px: its stages are at 1/4, 1/8 and 1/16 (those of `convvit_micro` at 1/2 and 1/4)",
        ),
    )
    preview_columns: ClassVar = ("image", "masked", "prediction")

    def build_head(self) -> nn.Module:
        """Build the decoder."""
        options, data = self.options, self.data
        self.grid = self.encoder.grid(torch.empty(1, data.channels, data.size, data.size))
        depth, width = options.decoder_size(self.encoder.width)
        return PatchDecoder(self.encoder.width, width, depth, self.grid, self.encoder.patch**2 * data.channels)

    def setup(self) -> None:
        """Compute the number of masked patches."""
        self.num_masked = masked_patch_count(self.options.mask_ratio, self.grid)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, the indices of `visible` and `masked` patches, and the normalized pixels of the latter, `target`."""
        image = self.crop(batch)
        mask = random_mask(len(image), self.grid[0] * self.grid[1], self.num_masked, image.device)
        visible, masked = split_patches(mask, self.num_masked)
        target = normalize_patches(take_patches(patchify(image, self.encoder.patch), masked))
        return {"image": image, "visible": visible, "masked": masked, "target": target}

    def predict(self, batch: Batch) -> Tensor:
        """Return the prediction for the masked patches, `[B, H, values]`."""
        tokens = self.encoder.tokens(batch["image"], keep=batch["visible"])
        return take_patches(self.head(tokens, self.encoder.prefix, keep=batch["visible"]), batch["masked"])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error on masked patches."""
        return F.mse_loss(output, batch["target"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to predicting each patch's mean, whose error is nearly 1 by the normalization."""
        error, baseline = (value.square().mean(dim=(1, 2)) for value in (output - batch["target"], batch["target"]))
        return {"error_share": error / baseline.clamp(min=1e-4)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image, the masked image, and, once trained, the image with predicted patches."""
        image, masked = batch["image"], batch["masked"]
        predicted = None
        if output is not None:
            predicted = denormalize_patches(output, take_patches(patchify(image, self.encoder.patch), masked))
        return preview_masked(image, masked, self.grid, predicted)
