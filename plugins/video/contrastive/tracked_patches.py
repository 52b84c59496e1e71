"""Tracked patches (Wang & Gupta, 2015)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.transforms import CropBox, crop
from sslkit.nn import Norm, mlp
from sslkit.nn.precision import widen
from sslkit.video.motion import camera_shifts, shift_frames, to_gray, track_patches


class TrackedPatches(PretextTask):
    """Embed the first and the last patch of a track closer than patches of other clips (Wang & Gupta, 2015).

    A track begins where most moves against the camera, and follows the patch by normalized cross-correlation; the paper finds
    patches by SURF and tracks them by a correlation filter.
    """

    class Options(PretextTask.Options):
        """Options of `tracked_patches`."""

        margin: float = Field(default=0.5, gt=0, description="By which a negative is to be farther (0.5 in the paper).")
        hard: int = Field(default=4, ge=1, description="Hardest negatives of each pair (4 in the paper).")
        random_share: float = Field(
            default=0.3, ge=0, le=1, description="Share of the run with random negatives, before the hardest are taken."
        )
        correlation: float = Field(default=0.5, ge=-1, le=1, description="Tracks with a lower mean correlation do not count.")
        distance: float = Field(default=0.05, ge=0, description="Tracks shorter than this fraction of a side do not count.")
        embedding: int = Field(default=128, ge=2, description="Width of the embedding (1,024 in the paper).")
        norm: Norm = Field(default="layer", description="Normalization in the head.")

    options: Options
    modality: ClassVar = "video"
    encodes: ClassVar = "image"  # patches
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "batch_size": 32}
    paper: ClassVar = Paper(
        source="sections 3 and 4 of the paper, the README of the authors",
        settings={"size": 227, "optimizer": "sgd", "lr": 1e-3, "weight_decay": 5e-4, "batch_size": 100, "embedding": 1024},
        unsupported=("patches by SURF and improved dense trajectories, tracked by KCF through 30 frames", "AlexNet"),
    )
    preview_columns: ClassVar = ("first", "last")

    def build_head(self) -> nn.Module:
        """Build the embedding of a patch's features."""
        return mlp([self.encoder.width, self.options.embedding, self.options.embedding], self.options.norm)

    def transform(self, batch: Batch) -> Batch:
        """Return the first and the last patch of a track in each clip, `[B, 2, C, S, S]`, and which are `valid` `[B]`."""
        clip = batch["video"]
        gray, canvas = to_gray(clip), clip.shape[-1]
        side = max(4, canvas // 2)
        top, left = moving_square(gray, side)
        last_top, last_left, correlation = track_patches(gray, top, left, side, reach=max(1, side // 8))
        apart = ((last_top - top).square() + (last_left - left).square()).sqrt() / canvas
        # A square of the canvas is stretched as the frame is: of its middle, a part in true proportions.
        window = batch["aspect"].clamp(0.5, 2)
        across, down = side / canvas / window.clamp(min=1), side / canvas * window.clamp(max=1)
        patches = []
        for frame, y, x in ((clip[:, 0], top, left), (clip[:, -1], last_top, last_left)):
            middle = (y + side / 2) / canvas, (x + side / 2) / canvas
            box = CropBox(middle[0] - down / 2, middle[1] - across / 2, down, across)
            patches.append(crop(frame, box, self.data.size))
        valid = (correlation >= self.options.correlation) & (apart >= self.options.distance)
        return {"image": torch.stack(patches, dim=1), "valid": valid}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors of both patches, `[B, 2, embedding]`."""
        return F.normalize(widen(super().predict(batch)), dim=2)

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the ranking loss (equation 2) with negatives of other clips, summed over the tracks that count.

        Negatives are random at first, then the nearest: mined from the start, all features become one.
        """
        positive, negative = self._distances(output)
        count = min(self.options.hard, max(1, len(output) - 1))
        order = torch.rand_like(negative) if self.clock.progress < self.options.random_share else negative
        order = order.masked_fill(torch.eye(len(output), dtype=torch.bool, device=output.device), torch.inf)
        chosen = negative.gather(1, order.argsort(dim=1)[:, :count])
        losses = F.relu(positive[:, None] - chosen + self.options.margin).mean(dim=1)
        return {"ranking": (losses * batch["valid"]).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of tracks that count."""
        return {"ranking": batch["valid"].sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of other clips whose patch is farther, chance where a track does not count; and whether it does."""
        positive, negative = self._distances(output)
        farther = (negative > positive[:, None]).float()  # never that of the clip itself
        share = farther.sum(dim=1) / max(1, len(output) - 1)
        return {"accuracy": share.where(batch["valid"], 0.5), "counted": batch["valid"].float()}

    def chance(self) -> dict[str, float]:
        """Return what a random embedding reaches."""
        return {"accuracy": 1 / 2}

    def _distances(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Return cosine distances of first patches to their last, `[B]`, and to the last patches of all clips, `[B, B]`."""
        distance = 1 - output[:, 0] @ output[:, 1].T
        return distance.diagonal(), distance


def moving_square(gray: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return where in the first of frames `[B, T, H, W]` the square with most motion against the camera lies, `[B]` each."""
    shifts = camera_shifts(gray)
    aligned, inside = shift_frames(gray, shifts - shifts[:, :1])
    changes = ((aligned[:, 1:] - aligned[:, :1]).abs() * inside[:, 1:]).sum(dim=1) / inside[:, 1:].sum(dim=1).clamp(min=1)
    changes = F.avg_pool2d(changes[:, None], side, stride=1)[:, 0]
    place = changes.flatten(1).argmax(dim=1)
    return place // changes.shape[2], place % changes.shape[2]
