"""Fill in hidden patches, from an encoder whose masked convolutions come before a transformer."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.decoders import PatchDecoder, PatchDecoderOptions
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.transforms import (
    denormalize_patches,
    gray_out_patches,
    masked_patch_count,
    normalize_patches,
    patchify,
    random_mask,
    replace_patches,
    split_patches,
    take_patches,
)
from sslkit.image.views import CropOptions, CropScale, random_crop_view
from sslkit.pictures import side_by_side


class MCMAE(PretextTask):
    """Fill in hidden patches, from an encoder whose masked convolutions come before a transformer (Gao et al., 2022).

    What is hidden of the last grid is hidden at every resolution before, so that nothing of it leaks through a convolution.
    """

    class Options(CropOptions, PatchDecoderOptions):
        """Hold the options of mcmae."""

        mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Share of patches that are hidden.")
        crop_scale: CropScale = 0.2

    options: Options
    encoder: PatchEncoder
    reads: ClassVar = ("masked_convolutions",)
    defaults: ClassVar = {"encoder": "convvit_micro", "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("as seen", "filled in", "image")

    def build_head(self) -> nn.Module:
        """Build the decoder."""
        options, data = self.options, self.data
        self.grid = self.encoder.grid(torch.empty(1, data.channels, data.size, data.size))
        depth, width = options.decoder_size(self.encoder.width)
        return PatchDecoder(self.encoder.width, width, depth, self.grid, self.encoder.patch**2 * data.channels)

    def setup(self) -> None:
        """Settle how much is hidden."""
        self.hidden = masked_patch_count(self.options.mask_ratio, self.grid)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, the places of visible and hidden patches, and the pixels of the latter, normalized per patch."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        mask = random_mask(len(image), self.grid[0] * self.grid[1], self.hidden, image.device)
        visible, hidden = split_patches(mask, self.hidden)
        target = normalize_patches(take_patches(patchify(image, self.encoder.patch), hidden))
        return {"image": image, "visible": visible, "hidden": hidden, "target": target}

    def predict(self, batch: Batch) -> Tensor:
        """Return what the decoder says of the hidden patches, `[B, H, values]`."""
        tokens = self.encoder.tokens(batch["image"], keep=batch["visible"])
        return take_patches(self.head(tokens, self.encoder.prefix, keep=batch["visible"]), batch["hidden"])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error on hidden patches."""
        return F.mse_loss(output, batch["target"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the error as a share of what each patch's own mean would make, which is nearly 1 by the normalization."""
        error, plain = (value.square().mean(dim=(1, 2)) for value in (output - batch["target"], batch["target"]))
        return {"error_share": error / plain.clamp(min=1e-4)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return what is visible of each image, the hidden part as it is filled in, and the image."""
        image, hidden = batch["image"], batch["hidden"]
        columns = [gray_out_patches(image, hidden, self.grid)]
        if output is not None:
            told = denormalize_patches(output, take_patches(patchify(image, self.encoder.patch), hidden))
            columns.append(replace_patches(image, hidden, told, self.encoder.patch).clamp(0, 1))
        return side_by_side(*columns, image)
