"""BEiT (Bao et al., 2022)."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.examples import example_tokenizer
from sslkit.image.tokenizer import TokenizerOptions, code_accuracy, code_loss, read_tokenizer
from sslkit.image.transforms import (
    block_mask,
    masked_patch_count,
    preview_masked,
    split_patches,
    take_patches,
)
from sslkit.image.views import CropOptions, CropScale


class BEiT(ImageTask):
    """Predict a tokenizer's codes of masked patches (BEiT; Bao et al., 2022).

    The tokenizer is a checkpoint of `vqvae`; blocks of patches are replaced by a mask token in the encoder's input.
    """

    class Options(TokenizerOptions, CropOptions):
        """Options of `beit`."""

        mask_ratio: float = Field(default=0.4, gt=0, lt=1, description="Fraction of masked patches (0.4 in the paper).")
        crop_scale: CropScale = 0.2

    options: Options
    encoder: PatchEncoder
    requires: ClassVar = ("tokens",)
    masked: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="appendix of the paper, README of the authors, 800 epochs of the base model",
        settings={
            "size": 224,
            "encoder": "vit_base_patch16_224",
            "encoder_option": {"drop_path_rate": "0.1", "init_values": "0.1"},
            "batch_size": 2048,
            "epochs": 800,
            "lr": 1.5e-3,
            "warmup": 10 / 800,
            "clip": 3.0,
            "mask_ratio": 75 / 196,
            "crop_scale": 0.08,
        },
        unsupported=(
            "the tokenizer of DALL-E, at 112 px (here a vqvae run)",
            "relative positions in the encoder",
            "color jitter of 0.4",
            "a final rate of 1e-5 (here 0)",
        ),
    )
    preview_columns: ClassVar = ("image", "masked")

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return a tokenizer with random weights."""
        return {"tokenizer": str(example_tokenizer(folder))}

    def build_head(self) -> nn.Module:
        """Read the tokenizer and build the linear layer to its codes."""
        data = self.data
        self.grid = self.encoder.grid(torch.empty(1, data.channels, data.size, data.size))
        self.tokenizer = read_tokenizer(self.options.tokenizer, "beit", data, self.grid)
        return nn.Linear(self.encoder.width, self.tokenizer.num_codes)

    def setup(self) -> None:
        """Compute the number of masked patches and create the mask token."""
        self.num_masked = masked_patch_count(self.options.mask_ratio, self.grid)
        self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, `mask` bool `[B, N]`, the indices of masked patches, `masked` `[B, H]`, and their `code` `[B, H]`."""
        image = self.crop(batch)
        mask = block_mask(len(image), self.grid, self.num_masked, image.device)
        _, masked = split_patches(mask, self.num_masked)
        return {"image": image, "mask": mask, "masked": masked, "code": self.tokenizer(image).gather(1, masked)}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the codes of masked patches, `[B, H, K]`."""
        tokens = self.encoder.tokens(batch["image"], mask=batch["mask"], fill=self.fill)
        logits: Tensor = self.head(take_patches(tokens[:, self.encoder.prefix :], batch["masked"]))
        return logits

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy on masked patches (equation 3)."""
        return code_loss(output, batch["code"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy on the codes of masked patches."""
        return {"accuracy": code_accuracy(output, batch["code"])}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image and the masked image."""
        return preview_masked(batch["image"], batch["masked"], self.grid)
