"""PointContrast (Xie et al., 2020)."""

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, TaskOptions
from sslkit.points.neighborhoods import take
from sslkit.points.pictures import draw_points
from sslkit.points.transforms import jitter, rotate_freely, rotate_randomly, scale


class PointContrast(PretextTask):
    """Match points between two overlapping parts of a cloud, each turned another way (PointContrast; Xie et al., 2020).

    A part is what lies to one side of a plane in a random direction, so that which points match is known exactly.
    """

    class Options(TaskOptions):
        """Options of `point_contrast`."""

        width: int = Field(default=32, ge=2, description="Width of the features to match.")
        temperature: float = Field(default=0.07, gt=0, description="Temperature of the cosines.")
        matches: int = Field(default=128, ge=2, description="Matched pairs of a cloud at most (4,096 of a scene in the paper).")
        share: float = Field(
            default=0.65, gt=0.5, le=1, description="Share of a cloud's points in each part; twice this minus 1 is in both."
        )
        rotation: Literal["vertical", "free", "none"] = Field(
            default="vertical", description="How each part is turned: around the vertical axis, freely, or not at all."
        )
        radius: float = Field(
            default=0.05, ge=0, description="Distance, of a cloud of radius 1, below which other points are no negatives."
        )

    options: Options
    modality: ClassVar = "points"
    requires: ClassVar = ("pooled", "tokens")
    defaults: ClassVar = {"lr": 1e-3, "weight_decay": 1e-4, "batch_size": 32}
    paper: ClassVar = Paper(
        source="the paper's section 3 and the defaults of its code",
        settings={
            "optimizer": "sgd",
            "lr": 0.1,
            "sgd_momentum": 0.8,
            "weight_decay": 1e-4,
            "batch_size": 32,
            "matches": 4096,
            "rotation": "vertical",
        },
        unsupported=(
            "scenes of two depth frames that overlap by 30% or more",
            "a residual U-Net of sparse convolutions",
            "a rate that falls by 1% every 1,000 steps (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("part 1", "part 2", "prediction")

    def build_head(self) -> nn.Module:
        """Build the linear layer whose output is matched."""
        return nn.Linear(self.encoder.width, self.options.width)

    def setup(self) -> None:
        """Count the points of a part, and of the pairs in both parts."""
        points = self.data.size
        self.kept = min(points, max(round(self.options.share * points), points // 2 + 2))
        self.pairs = min(self.options.matches, 2 * self.kept - points)

    def transform(self, batch: Batch) -> Batch:
        """Return both parts, `points` `[B, 2, K, 3 + F]`, `places` `[B, 2, M]` of the matches in them, and `near` `[B, M, M]`.

        The last tells which other matches are too near to be negatives.
        """
        points, device = batch["points"], batch["points"].device
        count, total = points.shape[:2]
        direction = F.normalize(torch.randn(count, 1, 3, device=device), dim=2)
        order = (points[..., :3] * direction).sum(dim=2).argsort(dim=1)  # along the direction
        chosen = torch.rand(count, 2 * self.kept - total, device=device).argsort(dim=1)[:, : self.pairs]
        matched = order.gather(1, total - self.kept + chosen)  # rows of the cloud that are in both parts
        coordinates = take(points[..., :3], matched)
        near = torch.cdist(coordinates, coordinates) < self.options.radius
        near = near & ~torch.eye(self.pairs, dtype=torch.bool, device=device)
        parts, places = [], []
        for rows in (order[:, : self.kept], order[:, total - self.kept :]):
            # Shuffled: the place of a point tells nothing about it.
            rows = rows.gather(1, torch.rand(rows.shape, device=device).argsort(dim=1))
            place = torch.zeros(count, total, dtype=torch.int64, device=device)
            place.scatter_(1, rows, torch.arange(self.kept, device=device).expand(count, -1))
            places.append(place.gather(1, matched))
            parts.append(self._turn(take(points, rows)))
        return {"points": torch.stack(parts, dim=1), "places": torch.stack(places, dim=1), "near": near}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit features of the matches in both parts, `[B, 2, M, D]`."""
        features = self.each_view(lambda points: self.head(self.encoder.tokens(points)), batch["points"])
        places = batch["places"][..., None].expand(-1, -1, -1, features.shape[3])
        return F.normalize(features.gather(2, places), dim=3)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return PointInfoNCE (equation 3): the cross-entropy of each point's match among the matches of its cloud."""
        scores = self._scores(output, batch)
        target = torch.arange(scores.shape[1], device=scores.device).expand(len(scores), -1)
        return F.cross_entropy(scores.flatten(0, 1), target.flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how often a point's match is the nearest in feature space."""
        nearest = self._scores(output, batch).argmax(dim=2)
        return {"accuracy": (nearest == torch.arange(nearest.shape[1], device=nearest.device)).float().mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the matches of a cloud."""
        return {"accuracy": 1 / self.pairs}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return both parts, matches in the same colors; once trained, the second part also with the predicted ones."""
        parts, places = batch["points"], batch["places"]
        colors = torch.linspace(0, 1, self.pairs, device=parts.device).expand(len(parts), -1)
        height = parts[:, 0, :, 2].gather(1, places[:, 0])
        colors = colors.gather(1, height.argsort(dim=1).argsort(dim=1))  # by height in the first part
        columns = [self._draw(parts[:, view], places[:, view], colors) for view in range(2)]
        if output is not None:
            nearest = self._scores(output, batch).argmax(dim=1)  # of each point in the second part, one in the first
            columns.append(self._draw(parts[:, 1], places[:, 1], colors.gather(1, nearest)))
        return torch.stack(columns, dim=1)

    def _scores(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the scaled cosines of points in the first part with those in the second, `[B, M, M]`."""
        scores = output[:, 0] @ output[:, 1].transpose(1, 2) / self.options.temperature
        return scores.masked_fill(batch["near"], -math.inf)

    def _turn(self, points: Tensor) -> Tensor:
        if self.options.rotation == "vertical":
            points = rotate_randomly(points)
        elif self.options.rotation == "free":
            points = rotate_freely(points)
        return jitter(scale(points))

    def _draw(self, points: Tensor, places: Tensor, colors: Tensor) -> Tensor:
        """Draw points `[N, K, 3 + F]`; those that are matched have colors `[N, M]`, the others are gray."""
        values = torch.full(points.shape[:2], math.nan, device=points.device)
        return draw_points(points / 1.3, values.scatter(1, places, colors))  # scaled by 1.2 at most
