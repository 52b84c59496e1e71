"""Fill in hidden patches; the encoder sees only the visible ones."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask, Run, SslkitError
from sslkit.image.decoders import PatchDecoder, PatchDecoderOptions
from sslkit.image.encoders.base import PatchEncoder
from sslkit.image.transforms import (
    as_pixels,
    block_mask,
    center_view,
    color_jitter,
    flip,
    grid_mask,
    hidden_count,
    normalize_patches,
    patches,
    random_crop,
    random_mask,
    random_resized_crop,
    split_patches,
    take_patches,
    with_hidden,
    with_patches,
)
from sslkit.nn import kmeans
from sslkit.pictures import side_by_side

Components = Annotated[int, Field(ge=1)]


_MEASURED = 1024  # images that components and codes are found on


class MAE(PretextTask):
    """Fill in hidden patches; the encoder sees only the visible ones (He et al., 2022)."""

    class Options(PatchDecoderOptions):
        """Hold MAE's options; names of choices are those of the paper's ablations."""

        mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Share of patches that are hidden.")
        sampling: Literal["random", "block", "grid"] = Field(
            default="random", description="Which are hidden: any, large blocks, or all but one of every two by two."
        )
        mask_tokens_in: Literal["encoder", "decoder"] = Field(
            default="decoder", description="Where mask tokens stand for hidden patches; encoder: it sees all places."
        )
        target: Literal["pixels", "normalized", "pca", "tokens"] = Field(
            default="normalized",
            description="What is predicted: pixels, pixels normalized per patch, their components, or the nearest of --codes.",
        )
        components: Components | Literal["auto"] = Field(
            default="auto", description="Components of --target pca, measured on the data; auto: an eighth of a patch's values."
        )
        codes: int = Field(
            default=512,
            ge=2,
            description="Codes of --target tokens: k-means centers of patches (8,192 of a dVAE there).",
        )
        augmentation: Literal["none", "crop", "resized-crop", "color"] = Field(
            default="resized-crop",
            description="none: the middle; crop: fixed size; color: resized, and color jitter.",
        )
        crop_scale: float = Field(default=0.2, gt=0, le=1, description="Smallest share of the image that a resized crop keeps.")

    options: Options
    preview_columns: ClassVar = ("as seen", "filled in", "image")
    encoder: PatchEncoder
    mean_patch: Tensor
    axes: Tensor
    codebook: Tensor
    reads: ClassVar = ("tokens",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 256}

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
        """Settle what is hidden, and keep room for what is measured."""
        options = self.options
        if options.sampling == "grid" and options.mask_ratio != 0.75:
            raise SslkitError(
                f"{options.mask_ratio} with --sampling grid", "a grid hides three of every four: 0.75", flag="mask_ratio"
            )
        if self.components > self.values:
            raise SslkitError(
                f"{self.components} of patches with {self.values} values", "give at most as many", flag="components"
            )
        self.hidden = hidden_count(options.mask_ratio, self.grid)
        if options.sampling == "grid":
            self.hidden = int(grid_mask(1, self.grid, torch.device("cpu")).sum())
        if options.mask_tokens_in == "encoder":
            self.fill = nn.Parameter(0.02 * torch.randn(self.encoder.width))
        if options.target == "pca":
            self.register_buffer("mean_patch", torch.zeros(self.values))
            self.register_buffer("axes", torch.zeros(self.values, self.components))
        if options.target == "tokens":
            self.register_buffer("codebook", torch.zeros(options.codes, self.values))

    def before_epoch(self, run: Run) -> None:
        """Measure components or codes of the data's patches, once."""
        if self.clock.epoch > 0 or self.options.target not in ("pca", "tokens"):
            return
        found = self._patches(center_view(run.batch(_MEASURED)["image"], self.data.size)).flatten(0, 1)
        if self.options.target == "pca":
            self.mean_patch.copy_(found.mean(dim=0))
            _, vectors = torch.linalg.eigh(torch.cov((found - self.mean_patch).T))  # ascending
            self.axes.copy_(vectors.flip(1)[:, : self.components])
            return
        if len(found) < self.options.codes:
            raise SslkitError(f"{self.options.codes} of {len(found)} patches", "give fewer, or more images", flag="codes")
        some = torch.randperm(len(found))[:20_000]
        self.codebook.copy_(kmeans(found[some.to(found.device)], self.options.codes).centers)

    def transform(self, batch: Batch) -> Batch:
        """Return the view, the places of visible and hidden patches, and what the hidden ones are."""
        image = self._view(batch["image"])
        visible, hidden = split_patches(self._mask(image), self.hidden)
        target = self._target(take_patches(self._patches(image), hidden))
        return {"image": image, "visible": visible, "hidden": hidden, "target": target}

    def predict(self, batch: Batch) -> Tensor:
        """Return what the decoder says of the hidden patches, `[B, H, values]`."""
        image, hidden = batch["image"], batch["hidden"]
        if self.options.mask_tokens_in == "decoder":
            tokens = self.encoder.tokens(image, keep=batch["visible"])
            return take_patches(self.head(tokens, self.encoder.prefix, keep=batch["visible"]), hidden)
        mask = torch.zeros(len(image), self.grid[0] * self.grid[1], dtype=torch.bool, device=image.device)
        tokens = self.encoder.tokens(image, mask=mask.scatter(1, hidden, True), fill=self.fill)
        return take_patches(self.head(tokens, self.encoder.prefix), hidden)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error on hidden patches, or the cross-entropy of their codes."""
        if self.options.target == "tokens":
            return F.cross_entropy(output.flatten(0, 1), batch["target"].flatten())
        return F.mse_loss(output, batch["target"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the error as a share of what each target's own mean would make, or, for codes, the share told right."""
        target = batch["target"]
        if self.options.target == "tokens":
            return {"accuracy": (output.argmax(dim=2) == target).float().mean(dim=1)}
        plain = (target - target.mean(dim=(1, 2), keepdim=True)).square().mean(dim=(1, 2))
        return {"error_share": (output - target).square().mean(dim=(1, 2)) / plain.clamp(min=1e-4)}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return what is visible of each image, the hidden part as it is filled in, and the image."""
        image, hidden = batch["image"], batch["hidden"]
        columns = [with_hidden(image, hidden, self.grid)]
        if output is not None:
            columns.append(with_patches(image, hidden, self._pixels(output, image, hidden), self.encoder.patch).clamp(0, 1))
        return side_by_side(*columns, image)

    def _view(self, image: Tensor) -> Tensor:
        size, kind = self.data.size, self.options.augmentation
        if kind == "none":
            return center_view(image, size)
        if kind == "crop":
            return flip(random_crop(image, size))
        image = flip(random_resized_crop(image, size, scale=(self.options.crop_scale, 1.0)))
        return color_jitter(image, 0.4, 0.4, 0.4, 0.1) if kind == "color" else image

    def _mask(self, image: Tensor) -> Tensor:
        sampling, batch = self.options.sampling, len(image)
        if sampling == "grid":
            return grid_mask(batch, self.grid, image.device)
        if sampling == "block":
            return block_mask(batch, self.grid, self.hidden, image.device)
        return random_mask(batch, self.grid[0] * self.grid[1], self.hidden, image.device)

    def _patches(self, image: Tensor) -> Tensor:
        return patches(image, self.encoder.patch)

    def _pixels(self, output: Tensor, image: Tensor, hidden: Tensor) -> Tensor:
        """Return the pixels that are told of hidden patches; a patch's own mean and deviation are what they were."""
        kind = self.options.target
        if kind == "normalized":
            return as_pixels(output, take_patches(self._patches(image), hidden))
        if kind == "pca":
            return output @ self.axes.T + self.mean_patch
        return self.codebook[output.argmax(dim=2)] if kind == "tokens" else output

    def _target(self, patch: Tensor) -> Tensor:
        """Return what is predicted of patches `[B, H, values]`."""
        kind = self.options.target
        if kind == "normalized":
            return normalize_patches(patch)
        if kind == "pca":
            return (patch - self.mean_patch) @ self.axes
        if kind == "tokens":
            return torch.cdist(patch.flatten(0, 1), self.codebook).argmin(dim=1).view(patch.shape[:2])
        return patch
