"""Point-MAE (Pang et al., 2022)."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, TaskOptions
from sslkit.nn import Block
from sslkit.points.encoders.point_patches import PointPatches, position_network
from sslkit.points.neighborhoods import squared_distances, take
from sslkit.points.pictures import draw_points
from sslkit.points.transforms import jitter, scale


class PointMAE(PretextTask):
    """Reconstruct hidden patches of a cloud from an encoding of the visible ones (Point-MAE; Pang et al., 2022)."""

    class Options(TaskOptions):
        """Options of `point_mae`."""

        mask_ratio: float = Field(default=0.6, gt=0, lt=1, description="Fraction of masked patches (0.6 in the paper).")
        decoder_depth: int = Field(default=2, ge=1, le=64, description="Transformer blocks in the decoder (4 in the paper).")

    options: Options
    encoder: PointPatches
    modality: ClassVar = "points"
    requires: ClassVar = ("patches",)
    masked: ClassVar = True
    visible_targets: ClassVar = ("target",)  # where the centers lie depends on all points, those of hidden patches too
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 64}
    paper: ClassVar = Paper(
        source="section 4 of the paper, cfgs/pretrain.yaml of the authors",
        settings={
            "point_count": 1024,
            "encoder_option": {"width": "384", "depth": "12", "patches": "64", "patch_points": "32"},
            "batch_size": 128,
            "epochs": 300,
            "lr": 1e-3,
            "weight_decay": 0.05,
            "warmup": 10 / 300,
            "decoder_depth": 4,
        },
        unsupported=("BatchNorm in the embedding of patches (here LayerNorm)", "stochastic depth of 0.1"),
    )
    preview_columns: ClassVar = ("cloud", "visible", "prediction")

    def build_head(self) -> nn.Module:
        """Build the decoder, whose last layer predicts the coordinates of a patch's points."""
        return PointDecoder(self.encoder.width, self.options.decoder_depth, self.encoder.patch_points)

    def setup(self) -> None:
        """Count the hidden patches: at least one, and not all."""
        patches = self.encoder.patches
        self.hidden = min(max(1, round(self.options.mask_ratio * patches)), patches - 1)

    def transform(self, batch: Batch) -> Batch:
        """Return the visible patches `[B, V, P, 3 + F]`, the `centers` `[B, G, 3]`, visible ones first, and the `target`.

        The last is hidden: the coordinates of the others `[B, H, P, 3]`. Clouds are scaled and moved as a whole, and not
        turned, as by the authors.
        """
        points = jitter(scale(batch["points"], 2 / 3, 3 / 2))
        centers, patches = self.encoder.cut(points)
        order = torch.rand(centers.shape[:2], device=centers.device).argsort(dim=1)
        centers, patches = take(centers, order), take(patches.flatten(2), order).unflatten(2, patches.shape[2:])
        visible = centers.shape[1] - self.hidden
        return {"points": points, "centers": centers, "visible": patches[:, :visible], "target": patches[:, visible:, :, :3]}

    def predict(self, batch: Batch) -> Tensor:
        """Return the predicted coordinates of the hidden patches' points, `[B, H, P, 3]`."""
        visible = batch["visible"]
        features = self.encoder.encode(batch["centers"][:, : visible.shape[1]], visible)
        output: Tensor = self.head(features, batch["centers"])
        return output

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean Chamfer distance (equation 5) of the predicted patches to the true ones."""
        return chamfer(output, batch["target"]).mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the distance relative to that of predicting all points of a patch at its center."""
        target = batch["target"]
        baseline = chamfer(torch.zeros_like(target), target).mean(dim=1)
        return {"error_share": chamfer(output, target).mean(dim=1) / baseline.clamp(min=1e-9)}

    def chance(self) -> dict[str, float]:
        """Return what predicting the center for all points of a patch reaches."""
        return {"error_share": 1.0}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor | None:
        """Return the cloud, its visible patches, and, once trained, these with the predicted ones."""
        visible, centers = batch["visible"][..., :3], batch["centers"]
        count = visible.shape[1]
        parts = [batch["points"], (visible + centers[:, :count, None]).flatten(1, 2)]
        if output is not None:
            parts.append(torch.cat([parts[1], (output.float() + centers[:, count:, None]).flatten(1, 2)], dim=1))
        return torch.stack([draw_points(part / 1.5) for part in parts], dim=1)


class PointDecoder(nn.Module):
    """Predict the points of hidden patches from features of the visible ones and all centers (section 3.2)."""

    def __init__(self, width: int, depth: int, patch_points: int) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(0.02 * torch.randn(width))
        self.positions = position_network(width)
        self.blocks = nn.ModuleList(Block(width, width // 32) for _ in range(depth))
        self.norm, self.output = nn.LayerNorm(width), nn.Linear(width, 3 * patch_points)

    def forward(self, visible: Tensor, centers: Tensor) -> Tensor:
        """Return coordinates `[B, H, P, 3]` of features `[B, V, width]` and centers `[B, V + H, 3]`, the visible first."""
        count = visible.shape[1]
        hidden = self.mask_token.to(visible.dtype).expand(len(visible), centers.shape[1] - count, -1)
        x, positions = torch.cat([visible, hidden], dim=1), self.positions(centers)
        for block in self.blocks:
            x = block(x + positions)
        output: Tensor = self.output(self.norm(x[:, count:])).unflatten(2, (-1, 3))
        return output


def chamfer(first: Tensor, second: Tensor) -> Tensor:
    """Return the Chamfer distances `[B, H]` of point sets `[B, H, P, 3]`: mean squared distances to the nearest, both ways.

    In float32: squares of what lies within a patch are small.
    """
    with torch.autocast(first.device.type, enabled=False):
        distance = squared_distances(first.flatten(0, 1), second.flatten(0, 1))
        result: Tensor = distance.amin(dim=2).mean(dim=1) + distance.amin(dim=1).mean(dim=1)
    return result.view(first.shape[:2])
