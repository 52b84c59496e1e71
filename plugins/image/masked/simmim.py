"""SimMIM (Xie et al., 2022)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, SslkitError
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.transforms import (
    masked_patch_count,
    patchify,
    preview_masked,
    random_mask,
    split_patches,
    take_patches,
)
from sslkit.image.views import CropOptions, CropScale

Pixels = Annotated[int, Field(ge=1)]


class SimMIM(ImageTask):
    """Predict the pixels of masked patches with a linear head (SimMIM; Xie et al., 2022)."""

    class Options(CropOptions):
        """Options of `simmim`."""

        mask_ratio: float = Field(default=0.6, gt=0, lt=1, description="Masked fraction of the image (0.6 in the paper).")
        mask_patch: Pixels | Literal["auto"] = Field(
            default="auto",
            description="Side of a masked square in pixels; auto: 1/4 of the image up to 64 px, else 1/6 (32 of 192).",
        )
        crop_scale: CropScale = 0.67

    options: Options
    encoder: PatchEncoder
    requires: ClassVar = ("tokens",)
    masked: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="configs/vit_base__800ep/simmim_pretrain__vit_base__img224__800ep.yaml and config.py of the authors, on 16 GPUs",
        settings={
            "size": 224,
            "encoder": "vit_base_patch16_224",
            "encoder_option": {"drop_path_rate": "0.1", "init_values": "0.1"},
            "batch_size": 2048,
            "epochs": 800,
            "lr": 4e-4,
            "warmup": 10 / 800,
            "clip": 5.0,
            "mask_patch": 32,
        },
        unsupported=(
            "a rate that is divided by ten at epoch 700 (here a cosine)",
            "relative positions, shared by all blocks",
        ),
    )
    preview_columns: ClassVar = ("image", "masked", "prediction")

    def build_head(self) -> nn.Module:
        """Build the linear layer to the pixels of a patch."""
        data = self.data
        self.grid = self.encoder.grid(torch.empty(1, data.channels, data.size, data.size))
        return nn.Linear(self.encoder.width, self.encoder.patch**2 * data.channels)

    def setup(self) -> None:
        """Compute the masked squares; raise SslkitError if they are not whole patches or do not tile the image."""
        size, patch, option = self.data.size, self.encoder.patch, self.options.mask_patch
        side = (size // 4 if size <= 64 else size // 6) if option == "auto" else option
        side = max(1, round(side / patch)) * patch if option == "auto" else side
        while option == "auto" and size % side:  # the next smaller square that tiles the image
            side -= patch
        if side % patch or size % side:
            raise SslkitError(
                f"squares of {side} px do not fit an image of {size} px with patches of {patch} px",
                "use a multiple of the patch that divides the image",
                flag="mask_patch",
            )
        self.square, self.squares = side // patch, size // side
        if self.squares < 2 <= size // patch:
            raise SslkitError(f"a square of {side} px covers the whole image", "use a smaller one", flag="mask_patch")
        self.num_masked = masked_patch_count(self.options.mask_ratio, (self.squares, self.squares))
        self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, `mask` bool `[B, N]`, the indices of masked patches, `masked` `[B, H]`, and their pixels, `target`."""
        image = self.crop(batch)
        coarse = random_mask(len(image), self.squares**2, self.num_masked, image.device).view(-1, self.squares, self.squares)
        mask = coarse.repeat_interleave(self.square, dim=1).repeat_interleave(self.square, dim=2).flatten(1)
        _, masked = split_patches(mask, self.num_masked * self.square**2)
        return {"image": image, "mask": mask, "masked": masked, "target": take_patches(self._patches(image), masked)}

    def predict(self, batch: Batch) -> Tensor:
        """Return the predicted pixels of the masked patches, `[B, H, values]`."""
        tokens = self.encoder.tokens(batch["image"], mask=batch["mask"], fill=self.fill)
        pixels: Tensor = self.head(take_patches(tokens[:, self.encoder.prefix :], batch["masked"]))
        return pixels

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean absolute error of masked pixels (section 3.3)."""
        return F.l1_loss(output, batch["target"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the absolute error relative to predicting the mean color of the visible pixels."""
        channels, mask = self.data.channels, batch["mask"]
        colors = self._patches(batch["image"]).unflatten(2, (-1, channels)).mean(dim=2)  # mean color per patch, [B, N, C]
        visible = (colors * ~mask[:, :, None]).sum(dim=1, keepdim=True) / (~mask).sum(dim=1)[:, None, None]
        target = batch["target"].unflatten(2, (-1, channels))
        baseline = (target - visible[:, :, None]).abs().mean(dim=(1, 2, 3))
        return {"error_share": (output - batch["target"]).abs().mean(dim=(1, 2)) / baseline.clamp(min=0.01)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image, the masked image, and the image with predicted patches."""
        return preview_masked(batch["image"], batch["masked"], self.grid, output)

    def reasons(self) -> dict[str, str]:
        """Return the resolved size of the masked squares."""
        pixels = self.square * self.encoder.patch
        return {"mask_patch": f"{pixels} px of {self.data.size}"} if self.options.mask_patch == "auto" else {}

    def _patches(self, image: Tensor) -> Tensor:
        return patchify(image, self.encoder.patch)
