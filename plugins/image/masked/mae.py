"""MAE (He et al., 2022)."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, ImageTask, Paper, Run, SslkitError
from sslkit.image.decoders import PatchDecoder, PatchDecoderOptions
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.tokenizer import code_accuracy, code_loss
from sslkit.image.transforms import (
    block_mask,
    color_jitter,
    denormalize_patches,
    flip,
    grid_mask,
    masked_patch_count,
    normalize_patches,
    patchify,
    preview_masked,
    random_crop,
    random_mask,
    split_patches,
    take_patches,
)
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import kmeans

Components = Annotated[int, Field(ge=1)]


_FIT_IMAGES = 1024  # images on which components and codes are fitted


class MAE(ImageTask):
    """Reconstruct masked patches from an encoding of the visible ones (MAE; He et al., 2022)."""

    class Options(CropOptions, PatchDecoderOptions):
        """Options of `mae`, most of them ablations of the paper."""

        mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Fraction of masked patches (0.75 in the paper).")
        sampling: Literal["random", "block", "grid"] = Field(
            default="random", description="Masked patches: random ones, large blocks, or all but one of every 2 × 2."
        )
        mask_tokens_in: Literal["encoder", "decoder"] = Field(
            default="decoder", description="Where mask tokens are inserted; encoder: it processes all patches."
        )
        target: Literal["pixels", "normalized", "pca", "tokens"] = Field(
            default="normalized",
            description="Target: pixels, pixels normalized per patch, PCA components, or the nearest of --codes.",
        )
        components: Components | Literal["auto"] = Field(
            default="auto",
            description="Principal components of --target pca; auto: 1/8 of a patch's values.",
        )
        codes: int = Field(
            default=512,
            ge=2,
            description="Codes of --target tokens: k-means centers of patches (8,192 codes of a dVAE in the paper).",
        )
        augmentation: Literal["none", "crop", "resized-crop", "color"] = Field(
            default="resized-crop",
            description="none: center view; crop: random fixed-size crop; color: resized crop and color jitter.",
        )
        crop_scale: CropScale = 0.2

    options: Options
    preview_columns: ClassVar = ("image", "masked", "prediction")
    encoder: PatchEncoder
    mean_patch: Tensor
    axes: Tensor
    codebook: Tensor
    requires: ClassVar = ("tokens",)
    masked: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}
    paper: ClassVar = Paper(
        source="PRETRAIN.md and main_pretrain.py of the authors, ViT-Large",
        settings={
            "size": 224,
            "encoder": "vit_large_patch16_224",
            "batch_size": 4096,
            "epochs": 800,
            "lr": 1.5e-4,
            "lr_scale": "linear",
            "betas": "0.9,0.95",
            "warmup": 40 / 800,
            "decoder_depth": 8,
            "decoder_width": 512,
        },
        unsupported=("fixed sine-cosine positions in the encoder (those of the decoder are)",),
    )

    def build_head(self) -> nn.Module:
        """Build the decoder."""
        options = self.options
        depth, width = options.decoder_size(self.encoder.width)
        self.grid = self.encoder.grid(torch.empty(1, self.data.channels, self.data.size, self.data.size))
        self.values = self.encoder.patch**2 * self.data.channels
        self.components = max(1, self.values // 8) if options.components == "auto" else options.components
        output = {"pca": self.components, "tokens": options.codes}.get(options.target, self.values)
        fills = options.mask_tokens_in == "decoder"
        return PatchDecoder(self.encoder.width, width, depth, self.grid, output, fills)

    def setup(self) -> None:
        """Compute the number of masked patches, and register buffers; raise SslkitError for options that conflict."""
        options = self.options
        if options.sampling == "grid" and options.mask_ratio != 0.75:
            raise SslkitError(
                f"{options.mask_ratio} conflicts with --sampling grid",
                "a grid masks three of every four patches: use 0.75",
                flag="mask_ratio",
            )
        if self.components > self.values:
            raise SslkitError(
                f"{self.components} exceeds the {self.values} values of a patch",
                f"use at most {self.values}",
                flag="components",
            )
        self.num_masked = masked_patch_count(options.mask_ratio, self.grid)
        if options.sampling == "grid":
            self.num_masked = int(grid_mask(1, self.grid, torch.device("cpu")).sum())
        if options.mask_tokens_in == "encoder":
            self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))
        if options.target == "pca":
            self.register_buffer("mean_patch", torch.zeros(self.values))
            self.register_buffer("axes", torch.zeros(self.values, self.components))
        if options.target == "tokens":
            self.register_buffer("codebook", torch.zeros(options.codes, self.values))

    def before_epoch(self, run: Run) -> None:
        """Fit components or codes to patches of the data, once."""
        if self.clock.epoch > 0 or self.options.target not in ("pca", "tokens"):
            return
        patch = self._patches(self.center_crop(run.batch(_FIT_IMAGES))).flatten(0, 1)
        if self.options.target == "pca":
            self.mean_patch.copy_(patch.mean(dim=0))
            _, vectors = torch.linalg.eigh(torch.cov((patch - self.mean_patch).T))  # ascending
            self.axes.copy_(vectors.flip(1)[:, : self.components])
            return
        if len(patch) < self.options.codes:
            raise SslkitError(
                f"{self.options.codes} exceeds the {len(patch)} patches", "use fewer, or more images", flag="codes"
            )
        sample = torch.randperm(len(patch))[:20_000]
        self.codebook.copy_(kmeans(patch[sample.to(patch.device)], self.options.codes).centers)

    def transform(self, batch: Batch) -> Batch:
        """Return a view, the indices of `visible` and `masked` patches, and the `target` of the latter."""
        image = self._view(batch)
        visible, masked = split_patches(self._mask(image), self.num_masked)
        target = self._target(take_patches(self._patches(image), masked))
        return {"image": image, "visible": visible, "masked": masked, "target": target}

    def predict(self, batch: Batch) -> Tensor:
        """Return the prediction for the masked patches, `[B, H, values]`."""
        image, masked = batch["image"], batch["masked"]
        if self.options.mask_tokens_in == "decoder":
            tokens = self.encoder.tokens(image, keep=batch["visible"])
            return take_patches(self.head(tokens, self.encoder.prefix, keep=batch["visible"]), masked)
        mask = torch.zeros(len(image), self.grid[0] * self.grid[1], dtype=torch.bool, device=image.device)
        tokens = self.encoder.tokens(image, mask=mask.scatter(1, masked, True), fill=self.fill)
        return take_patches(self.head(tokens, self.encoder.prefix), masked)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error on masked patches, or the cross-entropy of their codes."""
        if self.options.target == "tokens":
            return code_loss(output, batch["target"])
        return F.mse_loss(output, batch["target"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to predicting each image's mean target, or, for codes, the accuracy."""
        target = batch["target"]
        if self.options.target == "tokens":
            return {"accuracy": code_accuracy(output, target)}
        baseline = (target - target.mean(dim=(1, 2), keepdim=True)).square().mean(dim=(1, 2))
        return {"error_share": (output - target).square().mean(dim=(1, 2)) / baseline.clamp(min=1e-4)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the image, the masked image, and, once trained, the image with predicted patches."""
        image, masked = batch["image"], batch["masked"]
        predicted = None if output is None else self._pixels(output, image, masked)
        return preview_masked(image, masked, self.grid, predicted)

    def _view(self, batch: Batch) -> Tensor:
        kind = self.options.augmentation
        if kind == "none":
            return self.center_crop(batch)
        if kind == "crop":
            return flip(random_crop(batch["canvas"], self.data.size, aspect=batch["aspect"]))
        image = self.crop(batch)
        return color_jitter(image, 0.4, 0.4, 0.4, 0.1) if kind == "color" else image

    def _mask(self, image: Tensor) -> Tensor:
        sampling, batch = self.options.sampling, len(image)
        if sampling == "grid":
            return grid_mask(batch, self.grid, image.device)
        if sampling == "block":
            return block_mask(batch, self.grid, self.num_masked, image.device)
        return random_mask(batch, self.grid[0] * self.grid[1], self.num_masked, image.device)

    def _patches(self, image: Tensor) -> Tensor:
        return patchify(image, self.encoder.patch)

    def _pixels(self, output: Tensor, image: Tensor, masked: Tensor) -> Tensor:
        """Return the predicted pixels of masked patches; normalized ones get the true mean and deviation of their patch."""
        kind = self.options.target
        if kind == "normalized":
            return denormalize_patches(output, take_patches(self._patches(image), masked))
        if kind == "pca":
            return output @ self.axes.T + self.mean_patch
        return self.codebook[output.argmax(dim=2)] if kind == "tokens" else output

    def _target(self, patch: Tensor) -> Tensor:
        """Return the targets of patches `[B, H, values]`."""
        kind = self.options.target
        if kind == "normalized":
            return normalize_patches(patch)
        if kind == "pca":
            return (patch - self.mean_patch) @ self.axes
        if kind == "tokens":
            return torch.cdist(patch.flatten(0, 1), self.codebook).argmin(dim=1).view(patch.shape[:2])
        return patch
