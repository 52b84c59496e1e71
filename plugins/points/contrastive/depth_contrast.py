"""DepthContrast (Zhang et al., 2021)."""

from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, Paper, PretextTask, SslkitError, build_encoder
from sslkit.encoders.recipe import recipe_for
from sslkit.nn import (
    Momentum,
    ProjectorOptions,
    Queue,
    Teacher,
    check_queue,
    info_nce,
    mlp,
    momentum_reason,
    teacher_momentum,
    widen,
)
from sslkit.points.encoders.base import PointEncoder
from sslkit.points.pictures import draw_points
from sslkit.points.transforms import (
    choose_points,
    flip,
    in_random_cuboid,
    jitter,
    outside_random_ball,
    rotate_randomly,
    scale,
    visible_points,
)

_PAPER_MOMENTUM = 0.999


class DepthContrast(PretextTask):
    """Match two parts of what a depth camera sees of a cloud, against a queue (DepthContrast; Zhang et al., 2021).

    As MoCo with points. With `--second-encoder voxel_micro` the features of points and of voxels are matched as well.
    """

    class Options(ProjectorOptions):
        """Options of `depth_contrast`."""

        input: Literal["depth", "cloud"] = Field(
            default="depth", description="depth: the points that are visible from a random direction; cloud: all points."
        )
        crop: float = Field(default=0.5, gt=0, le=1, description="Smallest share of the points in a random cuboid.")
        drop: float = Field(
            default=0.2, ge=0, lt=1, description="Share of a part's points that are removed around one of them."
        )
        second_encoder: str = Field(
            default="none", description="Another encoder to match with, such as voxel_micro (points and voxels in the paper)."
        )
        temperature: float = Field(default=0.1, gt=0, description="Temperature of the loss.")
        queue: int = Field(default=1024, ge=1, description="Number of keys in the queue (131,072 in the paper).")
        momentum: Momentum = Field(
            default="auto", description="Momentum of the teacher; auto: 1 - 10/steps, from 0.9 to the paper's 0.999."
        )
        hidden: int = Field(default=256, ge=1, description="Hidden width of the head (512 in the paper).")

    options: Options
    modality: ClassVar = "points"
    encoder_inputs: ClassVar = ("points",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "batch_size": 64}
    paper: ClassVar = Paper(
        source="section 4 of the paper, configs/point_vox_template.yaml of the authors",
        settings={
            "second_encoder": "voxel_micro",
            "temperature": 0.1,
            "queue": 131_072,
            "momentum": 0.999,
            "hidden": 512,
            "width": 128,
            "optimizer": "sgd",
            "lr": 0.12,
            "weight_decay": 1e-4,
            "epochs": 1000,
        },
        unsupported=(
            "depth maps of a sensor (here what is visible of a cloud)",
            "PointNet++ with four stages, and a sparse residual U-Net",
            "a head with three layers",
        ),
    )
    preview_columns: ClassVar = ("query", "key")

    def build_head(self) -> nn.Module:
        """Build the head, with one hidden layer."""
        return self._build_head(self.encoder)

    def setup(self) -> None:
        """Build a teacher and a queue for each encoder, and the second encoder if there is one."""
        options = self.options
        check_queue(options.queue, self.data)
        self.teacher, self.queue = Teacher(self.encoder, self.head), Queue(options.queue, options.width)
        if options.second_encoder == "none":
            return
        recipe = recipe_for(options.second_encoder, self.data.size, self.data.channels)
        self.second = build_encoder(recipe)
        if not isinstance(self.second, PointEncoder):
            raise SslkitError(f"{options.second_encoder} is no encoder of points", "use voxel_micro", flag="second_encoder")
        self.second_head = self._build_head(self.second)
        self.second_teacher, self.second_queue = Teacher(self.second, self.second_head), Queue(options.queue, options.width)

    def transform(self, batch: Batch) -> Batch:
        """Return a query part and a key part of each cloud, `[B, 2, K, 3 + F]`, K half of its points."""
        points = batch["points"]
        usable = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
        if self.options.input == "depth":
            usable = visible_points(points)
        return {"points": torch.stack([self._view(points, usable) for _ in range(2)], dim=1)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return unit vectors `query` and `key`, `[B, D]`, and those of the second encoder."""
        first, second = batch["points"].unbind(1)
        result = {"query": self.head(self.encoder(first)), "key": self.teacher(second)}
        if self.options.second_encoder != "none":
            result |= {"second_query": self.second_head(self.second(first)), "second_key": self.second_teacher(second)}
        return {name: F.normalize(widen(vectors), dim=1) for name, vectors in result.items()}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return InfoNCE within each format and across the formats (equation 3); of four terms each counts half."""
        terms = {"within": ("query", "key", self.queue)}
        if self.options.second_encoder != "none":
            terms["second_within"] = ("second_query", "second_key", self.second_queue)
            terms["to_second"] = ("query", "second_key", self.second_queue)
            terms["from_second"] = ("second_query", "key", self.queue)
        weight = 1.0 if len(terms) == 1 else 0.5
        return {
            name: weight * info_nce(output[query], output[key], queue.rows, self.options.temperature).mean()
            for name, (query, key, queue) in terms.items()
        }

    def remember(self, output: dict[str, Tensor], batch: Batch) -> Batch:
        """Return the keys, for the queues."""
        return {name: output[name] for name in ("key", "second_key") if name in output}

    def after_step(self, remembered: Batch) -> None:
        """Update the teachers and push the keys."""
        momentum = teacher_momentum(self.options.momentum, self.clock, _PAPER_MOMENTUM)
        self.teacher.update(self.encoder, self.head, momentum=momentum)
        self.queue.push(remembered["key"])
        if self.options.second_encoder != "none":
            self.second_teacher.update(self.second, self.second_head, momentum=momentum)
            self.second_queue.push(remembered["second_key"])

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often the key is nearer to the query than all of the queue."""
        similarity = (output["query"] * output["key"]).sum(dim=1)
        return {"accuracy": (similarity > (output["query"] @ self.queue.rows.T).amax(dim=1)).float()}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the key and the queue."""
        return {"accuracy": 1 / (1 + self.options.queue)}

    def reasons(self) -> dict[str, str]:
        """Return what the momentum on `auto` became."""
        return momentum_reason(self.options.momentum, self.clock, _PAPER_MOMENTUM)

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return both parts."""
        return torch.stack([draw_points(part / 1.3) for part in batch["points"].unbind(1)], dim=1)

    def _build_head(self, encoder: Encoder) -> nn.Module:
        return mlp([encoder.width, self.options.hidden, self.options.width], self.options.norm)

    def _view(self, points: Tensor, usable: Tensor) -> Tensor:
        """Return half as many points of a random cuboid, a piece removed, turned, flipped, scaled and moved."""
        usable = in_random_cuboid(points, usable, self.options.crop)
        if self.options.drop:
            usable = outside_random_ball(points, usable, self.options.drop)
        part = choose_points(points, usable, max(16, points.shape[1] // 2))
        return jitter(scale(flip(rotate_randomly(part))))
