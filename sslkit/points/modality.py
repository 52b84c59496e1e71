"""What the machinery asks of point clouds."""

from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sslkit.contract.encoder import Encoder
from sslkit.contract.modality import Modality
from sslkit.contract.source import Source
from sslkit.contract.task import Batch, DataInfo
from sslkit.points.baselines import OccupancyGrid
from sslkit.points.options import PointOptions
from sslkit.points.pictures import draw_points
from sslkit.points.source import PointSource
from sslkit.points.transforms import jitter, rotate_randomly, scale

_CELLS = 8  # along each side of the grid that is a baseline


class TurnedClouds:
    """Rotate labeled clouds around the vertical axis, scale them and move each point a little."""

    def __call__(self, batch: Batch, target: Tensor) -> tuple[Batch, Tensor]:
        """Return `points` `[B, N, 3 + F]` and the targets."""
        return {"points": jitter(scale(rotate_randomly(batch["points"])))}, target


class PointModality(Modality):
    """Points `[B, N, 3 + F]`, coordinates in the unit ball."""

    options: ClassVar = PointOptions
    source: ClassVar = PointSource
    encoder_channels: ClassVar = None
    encoder_size: ClassVar = 1024
    small_options: ClassVar = {
        "pointnet_micro": {"width": "8"},
        "point_patches_micro": {"width": "32", "depth": "2", "patches": "16", "patch_points": "8"},
    }
    suggestions: ClassVar = {"patches": "point_patches_micro", "tokens": "pointnet_micro"}

    def default_encoder(self, info: DataInfo, requires: tuple[str, ...], on_cpu: bool) -> tuple[str, str]:
        """Return the small PointNet, or what cuts clouds into patches."""
        if "patches" in requires:
            return "point_patches_micro", "it cuts clouds into patches"
        return "pointnet_micro", "the fastest for points"

    def small_encoder(self, requires: tuple[str, ...], exact: bool) -> str:
        """Return the same; none of them has BatchNorm."""
        return "point_patches_micro" if "patches" in requires else "pointnet_micro"

    def baseline(self, encoder: Encoder, channels: int, size: int, detail: int) -> tuple[str, Encoder] | None:
        """Return the share of points in each cell of a grid."""
        return f"occupancy, {_CELLS}×{_CELLS}×{_CELLS} cells", OccupancyGrid(channels, _CELLS)

    def thumbnail(self, source: Source, row: int) -> Image.Image | None:
        """Return a picture of a cloud."""
        assert isinstance(source, PointSource)
        arrays, broken = source.read(np.array([row]))
        if broken:
            return None
        picture = draw_points(torch.from_numpy(arrays["points"]), size=192)[0]
        return Image.fromarray((picture.movedim(0, -1) * 255).round().byte().numpy())

    def augmentation(self, options: Any, info: DataInfo, classes: int) -> TurnedClouds:
        """Return what turns clouds; raises SslkitError for options that change images."""
        self.refuse_image_augmentation(options)
        return TurnedClouds()

    def example_inputs(self, count: int, channels: int, size: int) -> tuple[Tensor, str]:
        """Return points on spheres, `[count, size, channels]`."""
        random = torch.Generator().manual_seed(0)
        points = torch.randn(count, size, channels, generator=random)
        points[..., :3] /= points[..., :3].norm(dim=2, keepdim=True)
        return points, "spheres"
