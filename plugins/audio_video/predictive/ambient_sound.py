"""Ambient sound (Owens et al., 2016)."""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, Run
from sslkit.audio.texture import SoundTexture
from sslkit.audio_video.moments import crop_moments
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import cluster_count, kmeans
from sslkit.nn.clustering import nearest_center
from sslkit.pictures import contact_sheets

_MEASURED = 2048  # videos on whose sound clusters are fitted
_AT_ONCE = 64
_COMPONENTS = 32
_PAPER_COUNT = 30


class AmbientSound(PretextTask):
    """Predict from a frame what the sound around it is like (Owens et al., 2016).

    Sounds are described by statistics of their bands, without their level, and put into clusters, or described by the signs of
    their principal components, when the run begins.
    """

    class Options(CropOptions):
        """Options of `ambient_sound`."""

        target: Literal["clusters", "bits"] = Field(
            default="clusters", description="clusters: k-means of sounds; bits: signs of their principal components."
        )
        count: Annotated[int, Field(ge=2, le=256)] | Literal["auto"] = Field(
            default="auto", description="Clusters or bits; auto: 30, as in the paper, or less for few videos."
        )
        crop_scale: CropScale = 0.6

    options: Options
    head: nn.Linear
    mean: Tensor
    deviation: Tensor
    axes: Tensor
    centers: Tensor
    majority: Tensor
    modality: ClassVar = "audio_video"
    encodes: ClassVar = "image"
    encoder_inputs: ClassVar = ("image",)
    defaults: ClassVar = {"optimizer": "adamw", "lr": 1e-3, "weight_decay": 1e-4, "batch_size": 64}
    paper: ClassVar = Paper(
        source="sections 2 and 3 of the paper",
        settings={"size": 224, "seconds": 3.75, "count": _PAPER_COUNT},
        unsupported=("CaffeNet", "a cochlear filter bank"),
    )
    preview_columns: ClassVar = ("one kind of sound per row",)

    def build_head(self) -> nn.Module:
        """Build the classifier of clusters, or of bits."""
        self.count = cluster_count(self.options.count, self.data.samples, _PAPER_COUNT, flag="count")
        return nn.Linear(self.encoder.width, self.count)

    def setup(self) -> None:
        """Register what describes sounds: standardization, principal components, and centers."""
        self.texture = SoundTexture(self.data.details["sample_rate"])
        width, components = self.texture.width, max(_COMPONENTS, self.count)
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("deviation", torch.ones(width))
        self.register_buffer("axes", torch.zeros(width, components))
        self.register_buffer("centers", torch.zeros(self.count, components))
        self.register_buffer("majority", torch.zeros((), dtype=torch.int64))

    def before_epoch(self, run: Run) -> None:
        """Fit the principal components of sounds and their clusters, once."""
        if self.clock.epoch > 0:
            return
        parts = run.batch(_MEASURED, lambda batch: {"audio": batch["audio"]})["audio"].flatten(0, 1).split(_AT_ONCE)
        statistics = torch.cat([self.texture(part) for part in parts])
        self.mean.copy_(statistics.mean(dim=0))
        self.deviation.copy_(statistics.std(dim=0).clamp(min=1e-6))
        standardized = ((statistics - self.mean) / self.deviation).double().cpu()
        _, vectors = torch.linalg.eigh(standardized.T @ standardized)  # ascending
        self.axes.copy_(vectors[:, -self.axes.shape[1] :].flip(1))
        result = kmeans(self._describe_statistics(statistics), self.count)
        self.centers.copy_(result.centers)
        self.majority.copy_(result.labels.bincount(minlength=self.count).argmax())

    def transform(self, batch: Batch) -> Batch:
        """Return two frames, `[B, 2, C, S, S]`, and the `target` of each, `[B, 2]` or `[B, 2, bits]`: what is around it."""
        image = crop_moments(batch["video"], self.data.size, self.options.crop_scale, batch["aspect"])
        described = self._describe_statistics(self.texture(batch["audio"].flatten(0, 1)))
        if self.options.target == "bits":
            target = (described[:, : self.count] > 0).float()
        else:
            target = nearest_center(described, self.centers)[0]
        return {"image": image, "target": target.unflatten(0, image.shape[:2])}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of clusters, or of bits."""
        target = batch["target"]
        if self.options.target == "bits":
            return F.binary_cross_entropy_with_logits(output, target)
        return F.cross_entropy(output.flatten(0, 1), target.flatten())

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy; of clusters also that of the most frequent one."""
        target = batch["target"]
        if self.options.target == "bits":
            return {"accuracy": ((output > 0) == (target > 0.5)).float().mean(dim=(1, 2))}
        return {
            "accuracy": (output.argmax(dim=2) == target).float().mean(dim=1),
            "majority": (target == self.majority).float().mean(dim=1),
        }

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess."""
        return {"accuracy": 1 / 2 if self.options.target == "bits" else 1 / self.count}

    def reasons(self) -> dict[str, str]:
        """Return the number of clusters or bits that `auto` became."""
        return {"count": f"{self.count}: for {self.data.samples:,} videos"} if self.options.count == "auto" else {}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return contact sheets of frames by the true or predicted cluster of their sound, or by its first three bits."""
        kinds = batch["target"] if output is None else output
        if self.options.target == "bits":
            threshold = 0.5 if output is None else 0.0
            kinds = ((kinds[..., :3] > threshold) * torch.tensor([1, 2, 4][: self.count], device=kinds.device)).sum(dim=2)
        elif output is not None:
            kinds = kinds.argmax(dim=2)
        return contact_sheets(batch["image"].flatten(0, 1), kinds.flatten())

    def _describe_statistics(self, statistics: Tensor) -> Tensor:
        """Return the principal components of standardized statistics `[N, 374]`, `[N, components]`, the largest first."""
        return (statistics - self.mean) / self.deviation @ self.axes
