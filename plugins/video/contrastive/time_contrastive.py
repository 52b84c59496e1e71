"""Time-contrastive networks (Sermanet et al., 2018)."""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, SslkitError
from sslkit.image.transforms import color_jitter, random_resized_crop
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import Norm, mlp
from sslkit.nn.precision import widen


class TimeContrastive(PretextTask):
    """Embed frames so that those close in time are closer than others of the clip (TCN; Sermanet et al., 2018).

    With a single camera the positive is a frame close in time (section 3.2); with `--cameras all` it is what another camera saw
    at the same time (section 3.1). Negatives are of the same clip and camera: what tells them from the anchor is what moves,
    and not the scene. Each frame is cropped and colored on its own; else a drift of the background would be a clock.
    """

    class Options(CropOptions):
        """Options of `time_contrastive`."""

        positive_radius: int = Field(
            default=1, ge=1, description="Frames between anchor and positive at most, of a single camera (0.2 s in the paper)."
        )
        negative_radius: int = Field(
            default=3, ge=1, description="Frames of the window between anchor and negatives, at least (0.4 s in the paper)."
        )
        margin: float = Field(default=0.2, gt=0, description="By which a negative is to be farther than the positive.")
        embedding: int = Field(default=32, ge=2, description="Width of the embedding (32 in the paper).")
        hidden: int = Field(default=128, ge=1, description="Width of the head's hidden layer.")
        crop_scale: CropScale = 0.6
        norm: Norm = Field(default="layer", description="Normalization in the head.")

    options: Options
    near: Tensor
    far: Tensor
    modality: ClassVar = "video"
    encodes: ClassVar = "image"  # frames
    needs: ClassVar = ("cameras", "cameras_aspect")
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "batch_size": 32}
    paper: ClassVar = Paper(
        source="tcn_default.yml of the authors",
        settings={"size": 299, "optimizer": "adamw", "lr": 1e-3, "batch_size": 36, "margin": 0.2, "embedding": 32},
        unsupported=("Inception up to Mixed_5d with weights from ImageNet, which stay as they are, and a spatial softmax",),
    )
    preview_columns: ClassVar = ("anchor", "positive", "negative")

    def build_head(self) -> nn.Module:
        """Build the embedding of a frame's features."""
        return mlp([self.encoder.width, self.options.hidden, self.options.embedding], self.options.norm)

    def setup(self) -> None:
        """Register which frames may be positives and negatives of each; raise SslkitError for radii that leave none."""
        frames, options = self.data.details["frames"], self.options
        self.several = "cameras" in self.data.details
        usual = type(options).model_fields["positive_radius"].default
        if self.several and options.positive_radius != usual:
            raise SslkitError("positives are of another camera, at the same time", "leave it out", flag="positive_radius")
        if not self.several and options.negative_radius <= options.positive_radius:
            problem = f"{options.negative_radius} is not more than --positive-radius {options.positive_radius}"
            raise SslkitError(problem, "a positive would be a negative", flag="negative_radius")
        if frames < 2 * options.negative_radius:
            problem = f"in windows of {frames} frames, none is {options.negative_radius} from the middle"
            raise SslkitError(problem, f"use at most {frames // 2}, or a longer window", flag="negative_radius")
        time = torch.arange(frames)
        apart = (time[:, None] - time).abs()
        near, far = (apart > 0) & (apart <= options.positive_radius), apart >= options.negative_radius
        if self.several:  # the frames of two cameras follow each other
            near = torch.eye(2 * frames, dtype=torch.bool).roll(frames, dims=0)
            far = torch.block_diag(far, far)
        self.register_buffer("near", near.float(), persistent=False)
        self.register_buffer("far", far, persistent=False)

    def transform(self, batch: Batch) -> Batch:
        """Return frames with a crop and colors each, `[B, T, C, S, S]`, and the number of each one's `positive`, `[B, T]`.

        Of several cameras two are sampled for each clip, and T counts the frames of both.
        """
        clip, aspect = batch["video"], batch["aspect"].repeat_interleave(batch["video"].shape[1])
        if self.several:
            clip, aspect = self._two_cameras(batch)
        count, frames = clip.shape[:2]
        image = random_resized_crop(clip.flatten(0, 1), self.data.size, (self.options.crop_scale, 1.0), aspect=aspect)
        image = color_jitter(image, 0.4, 0.4, 0.4, 0.1).unflatten(0, (count, frames))
        positive = torch.multinomial(self.near.repeat(count, 1), 1).view(count, frames)
        return {"image": image, "positive": positive}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors of frames, `[B, T, embedding]`."""
        return F.normalize(widen(super().predict(batch)), dim=2)

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean triplet loss with the semi-hard negative of each anchor (Schroff et al., 2015, section 3.2)."""
        positive, negative = self._distances(output, batch)
        return F.relu(positive - negative + self.options.margin).mean()

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of negatives that are farther than the positive, and that of triplets which have a loss."""
        distance = squared_distances(output)
        positive, negative = self._distances(output, batch)
        farther = ((distance > positive[..., None]) & self.far).sum(dim=(1, 2)) / self.far.sum()
        return {"accuracy": farther, "active": (negative - positive < self.options.margin).float().mean(dim=1)}

    def chance(self) -> dict[str, float]:
        """Return what a random embedding reaches."""
        return {"accuracy": 1 / 2}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return a frame, its positive and a negative: once trained, the one it is nearest to."""
        image, middle = batch["image"], self.data.details["frames"] // 2
        sample = torch.arange(len(image), device=image.device)
        far = self.far[middle].float()
        scores = far.expand(len(image), -1) if output is None else -squared_distances(output)[:, middle] + 8 * far
        return torch.stack([image[:, middle], image[sample, batch["positive"][:, middle]], image[sample, scores.argmax(1)]], 1)

    def _two_cameras(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the frames of two cameras, one's after the other's, `[B, 2T, C, H, W]`, and the aspect of each, `[B * 2T]`."""
        clips = torch.cat([batch["video"][:, None], batch["cameras"]], dim=1)
        aspects = torch.cat([batch["aspect"][:, None], batch["cameras_aspect"]], dim=1)
        chosen = torch.rand(clips.shape[:2], device=clips.device).argsort(dim=1)[:, :2]
        sample = torch.arange(len(clips), device=clips.device)[:, None]
        return clips[sample, chosen].flatten(1, 2), aspects[sample, chosen].repeat_interleave(clips.shape[2], dim=1).flatten()

    def _distances(self, output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the squared distances of each frame to its positive and to its semi-hard negative, `[B, T]`.

        That is the nearest of those farther than the positive, or, if there is none, the farthest.
        """
        distance = squared_distances(output)
        positive = distance.gather(2, batch["positive"][..., None])
        beyond = distance.masked_fill(~(self.far & (distance > positive)), torch.inf).amin(dim=2)
        farthest = distance.masked_fill(~self.far, -1.0).amax(dim=2)
        return positive[..., 0], torch.where(beyond.isinf(), farthest, beyond)


def squared_distances(vectors: Tensor) -> Tensor:
    """Return the squared distances among the unit vectors `[B, T, D]` of each clip, `[B, T, T]`, from 0 to 4."""
    return (2 - 2 * vectors @ vectors.transpose(1, 2)).clamp(min=0)
