"""Paint hidden patches, from an encoder that sees a mask token in their place."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, SslkitError
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.transforms import (
    gray_out_patches,
    masked_patch_count,
    patchify,
    random_mask,
    replace_patches,
    split_patches,
    take_patches,
)
from sslkit.image.views import CropOptions, CropScale, random_crop_view
from sslkit.pictures import side_by_side

Pixels = Annotated[int, Field(ge=1)]


class SimMIM(PretextTask):
    """Paint hidden patches, from an encoder that sees a mask token in their place (Xie et al., 2022)."""

    class Options(CropOptions):
        """Hold the options of simmim."""

        mask_ratio: float = Field(default=0.6, gt=0, lt=1, description="Share of the image that is hidden.")
        mask_patch: Pixels | Literal["auto"] = Field(
            default="auto",
            description="Pixels of a hidden square's side; auto: a quarter of the image up to 64 px, else a sixth (32 of 192).",
        )
        crop_scale: CropScale = 0.67

    options: Options
    encoder: PatchEncoder
    reads: ClassVar = ("tokens",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    preview_columns: ClassVar = ("image", "as seen", "painted")

    def build_head(self) -> nn.Module:
        """Build the linear layer to the pixels of a patch."""
        data = self.data
        self.grid = self.encoder.grid(torch.empty(1, data.channels, data.size, data.size))
        return nn.Linear(self.encoder.width, self.encoder.patch**2 * data.channels)

    def setup(self) -> None:
        """Settle what is hidden; raises SslkitError for squares that are no whole patches, or no part of the image."""
        size, patch, asked = self.data.size, self.encoder.patch, self.options.mask_patch
        side = (size // 4 if size <= 64 else size // 6) if asked == "auto" else asked
        side = max(1, round(side / patch)) * patch if asked == "auto" else side
        while asked == "auto" and size % side:  # the next smaller square that fills the image
            side -= patch
        if side % patch or size % side:
            raise SslkitError(
                f"squares of {side} px, in an image of {size} px with patches of {patch}",
                "give a multiple of the patch that divides the image",
                flag="mask_patch",
            )
        self.square, self.squares = side // patch, size // side
        if self.squares < 2 <= size // patch:
            raise SslkitError(f"a square of {side} px is all of the image", "give less", flag="mask_patch")
        self.hidden = masked_patch_count(self.options.mask_ratio, (self.squares, self.squares))
        self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop, which patches are hidden, bool `mask` `[B, N]`, their places and what they are."""
        image = random_crop_view(batch["image"], self.data.size, self.options.crop_scale)
        coarse = random_mask(len(image), self.squares**2, self.hidden, image.device).view(-1, self.squares, self.squares)
        mask = coarse.repeat_interleave(self.square, dim=1).repeat_interleave(self.square, dim=2).flatten(1)
        _, hidden = split_patches(mask, self.hidden * self.square**2)
        return {"image": image, "mask": mask, "hidden": hidden, "target": take_patches(self._patches(image), hidden)}

    def predict(self, batch: Batch) -> Tensor:
        """Return the pixels of the hidden patches, `[B, H, values]`."""
        tokens = self.encoder.tokens(batch["image"], mask=batch["mask"], fill=self.fill)
        said: Tensor = self.head(take_patches(tokens[:, self.encoder.prefix :], batch["hidden"]))
        return said

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean absolute error of hidden pixels (section 3.3)."""
        return F.l1_loss(output, batch["target"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the absolute error as a share of what the mean of the visible pixels would make."""
        channels, mask = self.data.channels, batch["mask"]
        every = self._patches(batch["image"]).unflatten(2, (-1, channels)).mean(dim=2)  # each patch's color, [B, N, C]
        seen = (every * ~mask[:, :, None]).sum(dim=1, keepdim=True) / (~mask).sum(dim=1)[:, None, None]
        target = batch["target"].unflatten(2, (-1, channels))
        plain = (target - seen[:, :, None]).abs().mean(dim=(1, 2, 3))
        return {"error_share": (output - batch["target"]).abs().mean(dim=(1, 2)) / plain.clamp(min=0.01)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image, what is visible of it, and the hidden part as it is painted."""
        columns = [batch["image"], gray_out_patches(batch["image"], batch["hidden"], self.grid)]
        if output is not None:
            columns.append(replace_patches(batch["image"], batch["hidden"], output, self.encoder.patch).clamp(0, 1))
        return side_by_side(*columns)

    def reasons(self) -> dict[str, str]:
        """Say how large the hidden squares are."""
        pixels = self.square * self.encoder.patch
        return {"mask_patch": f"{pixels} px of {self.data.size}"} if self.options.mask_patch == "auto" else {}

    def _patches(self, image: Tensor) -> Tensor:
        return patchify(image, self.encoder.patch)
