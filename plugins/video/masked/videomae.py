"""VideoMAE (Tong et al., 2022)."""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError
from sslkit.image.decoders import PatchDecoder, PatchDecoderOptions
from sslkit.image.transforms import split_patches, take_patches
from sslkit.image.views import CropOptions, CropScale
from sslkit.pictures import tile_grid
from sslkit.video.encoders.video_micro import VideoMicro
from sslkit.video.transforms import crop_clip, cut_tubelets, join_tubelets, tubelet_mask

_SHOWN = 4  # frames in a preview


class VideoMAE(PretextTask):
    """Reconstruct hidden tubes of a clip from an encoding of the few visible ones (VideoMAE; Tong et al., 2022)."""

    class Options(CropOptions, PatchDecoderOptions):
        """Options of `videomae`."""

        # Of the 8 × 8 places of 32 px, a tenth says too little: after 240 steps the error was 97%, at 0.75 it was 66%.
        mask_ratio: float = Field(default=0.75, gt=0, lt=1, description="Fraction of masked tubelets (0.9 in the paper).")
        mask: Literal["tube", "random", "frame"] = Field(
            default="tube",
            description="Masked: the same places in all frames, any, or whole frames. Only tubes hide what a neighbor shows.",
        )
        target: Literal["normalized", "channels", "pixels"] = Field(
            default="normalized",
            description="Target: pixels normalized per tubelet, per tubelet and color channel as in the paper, or as they are.",
        )
        crop_scale: CropScale = 0.5

    options: Options
    encoder: VideoMicro
    modality: ClassVar = "video"
    requires: ClassVar = ("tubelets",)
    masked: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 3e-3, "weight_decay": 0.05, "betas": "0.9,0.95", "batch_size": 32}
    paper: ClassVar = Paper(
        source="section 4.1 and appendix of the paper, modeling_finetune.py and engine_for_pretraining.py of the authors",
        settings={
            "size": 224,
            "frames": 16,
            "frame_step": 4,
            "encoder_option": {"width": "768", "depth": "12", "patch": "16"},
            "batch_size": 1024,
            "epochs": 800,
            "lr": 1.5e-4,
            "lr_scale": "linear",
            "warmup": 40 / 800,
            "mask_ratio": 0.9,
            "target": "channels",
            "decoder_depth": 4,
            "decoder_width": 384,
        },
        unsupported=(
            "heads 64 wide (here 32)",
            "a crop of one of four fixed sizes (here of a random size)",
            "positions by one sine over the numbers of tubelets (here one each for time, row and column)",
        ),
    )
    preview_columns: ClassVar = ("frames", "masked", "prediction")

    def build_head(self) -> nn.Module:
        """Build the decoder."""
        depth, width = self.options.decoder_size(self.encoder.width)
        frames, channels, size = self.data.details["frames"], self.data.channels, self.data.size
        self.grid = self.encoder.grid(torch.empty(1, frames, channels, size, size))
        self.values = self.encoder.tubelet * self.encoder.patch**2 * channels
        return PatchDecoder(self.encoder.width, width, depth, self.grid, self.values)

    def setup(self) -> None:
        """Settle how targets are normalized; raise SslkitError if there are too few tubelets to mask some and see others."""
        self.groups = {"normalized": 1, "channels": self.data.channels, "pixels": None}[self.options.target]
        units = {"tube": self.grid[1] * self.grid[2], "frame": self.grid[0], "random": 2}[self.options.mask]
        if units < 2:
            flag, unit = ("frames", "moment") if self.options.mask == "frame" else ("size", "place")
            raise SslkitError(f"the encoder's tubelets have a single {unit}", "masking needs at least two", flag=flag)

    def transform(self, batch: Batch) -> Batch:
        """Return crops of clips, the indices of `visible` and `masked` tubelets, and the `target` of the latter."""
        clip = crop_clip(batch["video"], self.data.size, self.options.crop_scale, batch["aspect"])
        mask, hidden = tubelet_mask(len(clip), self.grid, self.options.mask, self.options.mask_ratio, clip.device)
        visible, masked = split_patches(mask, hidden)
        tubelets = take_patches(self._cut(clip), masked)
        target = tubelets if self.groups is None else normalize_tubelets(tubelets, self.groups)
        return {"video": clip, "visible": visible, "masked": masked, "target": target}

    def predict(self, batch: Batch) -> Tensor:
        """Return the prediction for the masked tubelets, `[B, H, values]`."""
        tokens = self.encoder.tokens(batch["video"], keep=batch["visible"])
        return take_patches(self.head(tokens, self.encoder.prefix, keep=batch["visible"]), batch["masked"])

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean squared error on masked tubelets."""
        return F.mse_loss(output, batch["target"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the squared error relative to predicting the mean of each tubelet, or of each of its color channels."""
        target = batch["target"].unflatten(2, (-1, self.groups or 1))
        baseline = (target - target.mean(dim=2, keepdim=True)).square().mean(dim=(1, 2, 3))
        error = (output - batch["target"]).square().mean(dim=(1, 2))
        return {"error_share": error / baseline.clamp(min=1e-4)}

    def chance(self) -> dict[str, float]:
        """Return what predicting the true mean of each tubelet reaches."""
        return {"error_share": 1.0}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return some frames, the same masked, and, once trained, with predicted tubelets."""
        clip, masked = batch["video"], batch["masked"]
        tubelets = self._cut(clip)
        index = masked[:, :, None].expand(-1, -1, self.values)
        columns = [clip, self._join(tubelets.scatter(1, index, 0.5), clip.shape)]
        if output is not None:
            output = output.float()
            if self.groups is not None:
                output = denormalize_tubelets(output, take_patches(tubelets, masked), self.groups)
            columns.append(self._join(tubelets.scatter(1, index, output), clip.shape).clamp(0, 1))
        numbers = torch.linspace(0, clip.shape[1] - 1, min(_SHOWN, clip.shape[1])).round().long().to(clip.device)
        return torch.stack([tile_grid(column[:, numbers], columns=2) for column in columns], dim=1)

    def _cut(self, clip: Tensor) -> Tensor:
        return cut_tubelets(clip, self.encoder.tubelet, self.encoder.patch)

    def _join(self, tubelets: Tensor, shape: torch.Size) -> Tensor:
        return join_tubelets(tubelets, shape, self.encoder.tubelet, self.encoder.patch)


def normalize_tubelets(tubelets: Tensor, groups: int) -> Tensor:
    """Normalize tubelets `[B, N, pixels * C]` by their own means and deviations: of C groups, those of each color channel."""
    mean, deviation = _moments(tubelets, groups)
    normalized: Tensor = (tubelets.unflatten(2, (-1, groups)) - mean) / deviation
    return normalized.flatten(2)


def denormalize_tubelets(normalized: Tensor, tubelets: Tensor, groups: int) -> Tensor:
    """Return normalized tubelets with the means and deviations of others: the inverse of `normalize_tubelets`."""
    mean, deviation = _moments(tubelets, groups)
    pixels: Tensor = normalized.unflatten(2, (-1, groups)) * deviation + mean
    return pixels.flatten(2)


def _moments(tubelets: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    pixels = tubelets.unflatten(2, (-1, groups))
    return pixels.mean(dim=2, keepdim=True), pixels.std(dim=2, keepdim=True) + 1e-6
