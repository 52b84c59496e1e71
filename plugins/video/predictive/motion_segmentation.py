"""Segmentation of what moves (Pathak et al., 2017)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.decoders import ConvDecoder, map_size
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import Norm
from sslkit.pictures import side_by_side
from sslkit.video.motion import moving_pixels, to_gray
from sslkit.video.transforms import crop_clip


class MotionSegmentation(PretextTask):
    """Segment in a single frame what moves in its clip (learning by watching objects move; Pathak et al., 2017).

    What moves is what differs from the median over frames that are aligned by a shift; the paper segments optical flow. So
    the camera may pan, but not turn or drive.
    """

    class Options(CropOptions):
        """Options of `motion_segmentation`."""

        least: float = Field(default=0.02, ge=0, lt=1, description="Clips in which less of the frame moves do not count.")
        most: float = Field(default=0.6, gt=0, le=1, description="Clips in which more of the frame moves do not count.")
        norm: Norm = Field(default="batch", description="Normalization inside the decoder.")
        crop_scale: CropScale = 0.5

    options: Options
    modality: ClassVar = "video"
    encodes: ClassVar = "image"  # a frame
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 32}
    paper: ClassVar = Paper(
        source="section 5 of the paper",
        settings={"size": 227, "optimizer": "sgd"},
        unsupported=("masks by uNLC on optical flow, made beforehand", "AlexNet with two fully connected layers to 56 × 56 px"),
    )
    preview_columns: ClassVar = ("frame", "motion", "prediction")

    def build_head(self) -> nn.Module:
        """Build a decoder from the feature map to a quarter of the image size."""
        self.side = max(self.data.size // 4, 4)
        small = map_size(self.encoder, torch.zeros(1, self.data.channels, self.data.size, self.data.size))
        return ConvDecoder(self.encoder.width, small, self.side, 1, self.options.norm)

    def transform(self, batch: Batch) -> Batch:
        """Return the middle frame, the share of moving pixels at each place, -1 where it is unknown, and which are `valid`."""
        clip = crop_clip(batch["video"], self.data.size, self.options.crop_scale, batch["aspect"], flipped=0.5)
        pixels = moving_pixels(to_gray(clip))
        known = F.adaptive_avg_pool2d((pixels >= 0).float()[:, None], self.side)[:, 0]
        share = F.adaptive_avg_pool2d((pixels > 0).float()[:, None], self.side)[:, 0]
        moving = (share / known.clamp(min=1e-6)).where(known > 0.5, -1.0)
        covered = (pixels > 0).float().mean(dim=(1, 2))
        valid = (covered >= self.options.least) & (covered <= self.options.most)
        return {"image": clip[:, clip.shape[1] // 2], "moving": moving, "valid": valid}

    def predict(self, batch: Batch) -> Tensor:
        """Return logits of motion, `[B, h, w]`."""
        logits: Tensor = self.head(self.encoder.feature_map(batch["image"]))[:, 0]
        return logits

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy, moving and still places alike in weight, summed over the clips that count."""
        moving = batch["moving"]
        each = F.binary_cross_entropy_with_logits(output, moving.clamp(min=0), reduction="none")
        moves, still = moving.clamp(min=0), (1 - moving).where(moving >= 0, 0.0)
        terms = [(each * weight).sum(dim=(1, 2)) / weight.sum(dim=(1, 2)).clamp(min=1e-6) for weight in (moves, still)]
        return {"motion": ((terms[0] + terms[1]) / 2 * batch["valid"]).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of clips that count."""
        return {"motion": batch["valid"].sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the balanced accuracy over known places: chance where a clip does not count; and whether it counts."""
        known, moves = batch["moving"] >= 0, batch["moving"] > 0.5
        right = ((output > 0) == moves) & known
        parts = [(right & part).sum(dim=(1, 2)) / (known & part).sum(dim=(1, 2)).clamp(min=1) for part in (moves, ~moves)]
        both = (known & moves).any(dim=(1, 2)) & (known & ~moves).any(dim=(1, 2)) & batch["valid"]
        return {"accuracy": ((parts[0] + parts[1]) / 2).where(both, 0.5), "counted": batch["valid"].float()}

    def chance(self) -> dict[str, float]:
        """Return the balanced accuracy of a guess."""
        return {"accuracy": 1 / 2}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the frame, what moves (white; gray: unknown), and, once trained, the prediction."""
        size = batch["image"].shape[-2:]
        maps = [batch["moving"].where(batch["moving"] >= 0, 0.5)]
        if output is not None:
            maps.append(output.float().sigmoid())
        return side_by_side(batch["image"], *(F.interpolate(each[:, None], size=size) for each in maps))
