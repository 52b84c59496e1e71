"""Tell the codes of hidden patches, as a tokenizer would."""

from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.examples import example_tokenizer
from sslkit.image.tokenizer import read_tokenizer
from sslkit.image.transforms import (
    block_mask,
    gray_out_patches,
    masked_patch_count,
    split_patches,
    take_patches,
)
from sslkit.image.views import CropOptions, CropScale, random_crop_view
from sslkit.pictures import side_by_side


class BEiT(PretextTask):
    """Tell the codes of hidden patches, as a tokenizer would (Bao et al., 2022).

    The tokenizer is a checkpoint of `vqvae`; the encoder sees a mask token in place of blocks of patches.
    """

    class Options(CropOptions):
        """Hold the options of beit."""

        tokenizer: Path | None = Field(default=None, description="model.safetensors of a run of vqvae.")
        mask_ratio: float = Field(default=0.4, gt=0, lt=1, description="Share of patches that are hidden, in blocks.")
        crop_scale: CropScale = 0.2

    options: Options
    encoder: PatchEncoder
    reads: ClassVar = ("tokens",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("image", "as seen")

    @classmethod
    def example_options(cls, folder: Path) -> dict[str, Any]:
        """Return a tokenizer of random weights."""

        return {"tokenizer": str(example_tokenizer(folder))}

    def build_head(self) -> nn.Module:
        """Read the tokenizer, and build the linear layer to its codes."""
        data = self.data
        self.grid = self.encoder.grid(torch.empty(1, data.channels, data.size, data.size))
        self.tokenizer = read_tokenizer(self.options.tokenizer, "beit", data, self.grid)
        return nn.Linear(self.encoder.width, self.tokenizer.num_codes)

    def setup(self) -> None:
        """Settle how much is hidden."""
        self.hidden = masked_patch_count(self.options.mask_ratio, self.grid)
        self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, which patches are hidden, bool `mask` `[B, N]`, their places and their codes, `[B, H]`."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        mask = block_mask(len(image), self.grid, self.hidden, image.device)
        _, hidden = split_patches(mask, self.hidden)
        return {"image": image, "mask": mask, "hidden": hidden, "code": self.tokenizer(image).gather(1, hidden)}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of the codes of hidden patches, `[B, H, K]`."""
        tokens = self.encoder.tokens(batch["image"], mask=batch["mask"], fill=self.fill)
        said: Tensor = self.head(take_patches(tokens[:, self.encoder.prefix :], batch["hidden"]))
        return said

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy with the codes (equation 3)."""
        return F.cross_entropy(output.flatten(0, 1), batch["code"].flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of hidden patches whose code was told right."""
        return {"accuracy": (output.argmax(dim=2) == batch["code"]).float().mean(dim=1)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image, and what is visible of it."""
        return side_by_side(batch["image"], gray_out_patches(batch["image"], batch["hidden"], self.grid))
