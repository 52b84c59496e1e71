"""Colorization of video by pointing (Vondrick et al., 2018)."""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, Paper, PretextTask, Run, SslkitError
from sslkit.image.color_bins import nearest_bin
from sslkit.image.transforms import lab_to_rgb, rgb_to_lab
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import kmeans
from sslkit.nn.norms import in_eval_mode
from sslkit.nn.precision import widen
from sslkit.pictures import side_by_side
from sslkit.video.transforms import crop_frames

_PALETTE_CLIPS = 256  # from which the palette is made
_LEAST = 1e-4  # added to probabilities, for a color that no reference has


class VideoColorization(PretextTask):
    """Copy a gray frame's colors from reference frames by pointing at similar places (Vondrick et al., 2018).

    The encoder sees lightness only, which its recipe in the checkpoint records. Its features can track: see `sslkit propagate`.
    """

    class Options(CropOptions):
        """Options of `video_colorization`."""

        references: int = Field(default=3, ge=1, le=8, description="Frames that colors are copied from (3 in the paper).")
        colors: int = Field(default=16, ge=2, le=256, description="Colors of the palette (16 in the paper).")
        embedding: int = Field(default=64, ge=2, description="Width of the vector of a place (64 in the paper).")
        temperature: float = Field(
            default=0.07, gt=0, description="Temperature of the softmax over places; the paper's vectors have no fixed length."
        )
        shift: float = Field(
            default=0.1,
            ge=0,
            le=0.5,
            description="Random shift of each frame's crop, as a fraction of its side; 0 in the paper.",
        )
        crop_scale: CropScale = 0.5

    options: Options
    head: nn.ModuleList
    palette: Tensor
    modality: ClassVar = "video"
    encodes: ClassVar = "image"  # frames
    requires: ClassVar = ("feature_map",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "batch_size": 32}
    paper: ClassVar = Paper(
        source="section 4 of the paper",
        settings={"size": 256, "encoder": "resnet18", "batch_size": 32, "steps": 400_000, "lr": 1e-3, "shift": 0.0},
        unsupported=(
            "a ResNet-18 at an eighth of the size, and five dilated 3-D convolutions on it",
            "a rate that is divided by ten (here a cosine)",
        ),
    )
    preview_columns: ClassVar = ("reference", "lightness", "frame", "prediction")

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build an encoder of lightness."""
        return build(select="l")

    def build_head(self) -> nn.Module:
        """Build a projection of each of the encoder's maps, or of the last if it lists none."""
        image = torch.zeros(1, 3, self.data.size, self.data.size)
        self.side = max(4, self.data.size // 4)
        with torch.no_grad(), in_eval_mode(self.encoder):
            widths = [features.shape[1] for features in self._maps(image)]
        return nn.ModuleList(nn.Conv2d(width, self.options.embedding, 1) for width in widths)

    def setup(self) -> None:
        """Register the palette; raise SslkitError for windows that are too short."""
        frames = self.data.details["frames"]
        if frames <= self.options.references:
            problem = f"windows have {frames} frames, of which {self.options.references} are references"
            raise SslkitError(problem, f"use at most {frames - 1}", flag="references")
        self.register_buffer("palette", torch.zeros(self.options.colors, 2))

    def before_epoch(self, run: Run) -> None:
        """Fit the palette, k-means centers of colors, once."""
        if self.clock.epoch > 0:
            return
        frames = run.batch(_PALETTE_CLIPS, lambda batch: {"video": batch["video"][:, :1]})["video"][:, 0]
        ab = self._small_colors(frames).permute(0, 2, 3, 1).flatten(0, 2)
        distinct = len(ab.round().unique(dim=0))
        if distinct < self.options.colors:
            problem = f"{self.options.colors} are more colors than frames have ({distinct})"
            raise SslkitError(problem, "use fewer; gray videos have nothing to predict", flag="colors")
        self.palette.copy_(kmeans(ab, self.options.colors).centers)

    def transform(self, batch: Batch) -> Batch:
        """Return references and, last, the frame to color, `[B, R + 1, C, S, S]`, and the number of each place's `color`.

        That is int64 `[B, R + 1, h, w]`. A clip is `valid` if the last frame has more than one color.
        """
        clip, count = batch["video"], self.options.references + 1
        start = torch.randint(clip.shape[1] - count + 1, (len(clip), 1), device=clip.device)
        sample = torch.arange(len(clip), device=clip.device)[:, None]
        frames = clip[sample, start + torch.arange(count, device=clip.device)]
        image = crop_frames(frames, self.data.size, self.options.crop_scale, batch["aspect"], self.options.shift)
        color = nearest_bin(self._small_colors(image.flatten(0, 1)), self.palette).unflatten(0, image.shape[:2])
        last = color[:, -1].flatten(1)
        return {"image": image, "color": color, "valid": (last != last[:, :1]).any(dim=1)}

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors of the places of each frame, `[B, R + 1, h * w, embedding]`."""
        return F.normalize(widen(self.each_view(self._places, batch["image"])), dim=3)

    def loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the cross-entropy of the copied colors (equation 2), a mean over places, summed over the clips that count."""
        likely = self._copied(output, batch).gather(2, batch["color"][:, -1].flatten(1)[..., None])[..., 0]
        return {"pointing": (-(likely + _LEAST).log().mean(dim=1) * batch["valid"]).sum()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of clips that count."""
        return {"pointing": batch["valid"].sum()}

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the share of places with the right color, and that of copying the same place of the reference before."""
        color = batch["color"].flatten(2)
        predicted = self._copied(output, batch).argmax(dim=2)
        return {
            "accuracy": (predicted == color[:, -1]).float().mean(dim=1),
            "copy_accuracy": (color[:, -2] == color[:, -1]).float().mean(dim=1),
        }

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the last reference, the frame's lightness, the frame, and, once trained, the frame in copied colors."""
        before, frame = batch["image"][:, -2], batch["image"][:, -1]
        lab = rgb_to_lab(frame)
        columns = [before, lab[:, :1] / 100, frame]
        if output is not None:
            ab = (self._copied(output, batch) @ self.palette).transpose(1, 2).unflatten(2, (self.side, self.side))
            ab = F.interpolate(ab, size=lab.shape[-2:], mode="bilinear")
            columns.append(lab_to_rgb(torch.cat([lab[:, :1], ab], dim=1)))
        return side_by_side(*columns)

    def _copied(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the probabilities of colors at each place of the last frame, `[B, h * w, colors]` (equation 1)."""
        references = output[:, :-1].flatten(1, 2)
        weights = torch.softmax(output[:, -1] @ references.transpose(1, 2) / self.options.temperature, dim=2)
        colors = F.one_hot(batch["color"][:, :-1].flatten(1), self.options.colors)
        return weights @ colors.to(weights.dtype)

    def _places(self, image: Tensor) -> Tensor:
        """Return vectors of a quarter as many places a side as pixels, `[B, h * w, embedding]`: the sum over all maps."""
        maps = [project(features) for project, features in zip(self.head, self._maps(image), strict=True)]
        size = (self.side, self.side)
        resized = [F.interpolate(each, size=size, mode="bilinear") for each in maps]
        return torch.stack(resized).sum(dim=0).flatten(2).transpose(1, 2)

    def _maps(self, image: Tensor) -> list[Tensor]:
        layers = self.encoder.layers(image) if "layers" in self.encoder.provides else []
        return [features for features in layers if features.dim() == 4] or [self.encoder.feature_map(image)]

    def _small_colors(self, image: Tensor) -> Tensor:
        return F.interpolate(rgb_to_lab(image)[:, 1:], size=(self.side, self.side), mode="area")
