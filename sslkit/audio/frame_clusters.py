"""What tasks that predict the clusters of masked frames have in common (HuBERT; Hsu et al., 2021)."""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit.audio.encoders.speech import SpeechEncoder
from sslkit.audio.masks import span_mask
from sslkit.audio.pictures import draw_labels, draw_masked, draw_spectrograms
from sslkit.audio.spectrogram import MFCC
from sslkit.contract.errors import SslkitError
from sslkit.contract.options import TaskOptions
from sslkit.contract.task import Batch, PretextTask, Run
from sslkit.nn import Teacher, kmeans, widen
from sslkit.nn.clustering import nearest_center

Clusters = Annotated[int, Field(ge=2)]

_FIT_RECORDINGS = 2048  # on which clusters are fitted
_FRAMES_PER_CLUSTER = 10
_TEMPERATURE = 0.1


class FrameClusterOptions(TaskOptions):
    """Options of tasks that predict the clusters of masked frames."""

    clusters: Clusters | Literal["auto"] = Field(
        default="auto", description="Clusters of MFCC, in the first iteration; auto: 50 (100 in the paper)."
    )
    feature_clusters: Clusters | Literal["auto"] = Field(
        default="auto", description="Clusters of features, later; auto: 100 (500 in the paper)."
    )
    iterations: int = Field(default=2, ge=1, le=8, description="How often clusters are fitted, at equal shares of the run.")
    mask_ratio: float = Field(default=0.5, gt=0, lt=1, description="Share of masked frames (0.55 in the paper).")
    span: int = Field(default=5, ge=1, le=100, description="Frames in a masked span (10 in the paper).")
    width: int = Field(default=64, ge=1, description="Width of the projection of frames and clusters (256 in the paper).")
    penalty: float = Field(default=10.0, ge=0, description="Weight of the mean square of the convolutions' output.")


# Of HuBERT's and WavLM's base models.
PAPER_SETTINGS: dict[str, Any] = {
    "seconds": 15.6,
    "sample_rate": 16_000,
    "encoder_option": {"width": "768", "depth": "12", "channels": "512"},
    "clusters": 100,
    "feature_clusters": 500,
    "mask_ratio": 0.55,
    "span": 10,
    "width": 256,
    "lr": 5e-4,
    "warmup": 0.08,
    "clip": 10.0,
}
UNSUPPORTED = (
    "GroupNorm in the first convolution, over time",
    "a tenth of the gradient for the convolutions, and dropout of layers",
    "a rate that falls linearly (here a cosine)",
)


class FrameClusterTask(PretextTask):
    """Base of tasks that predict the clusters of masked frames: of their MFCC, then of the features learned so far.

    Labels are those of the window at hand, unmasked: the nearest centers, which are fitted when an iteration begins.
    """

    options: FrameClusterOptions
    encoder: SpeechEncoder
    head: "ClusterHead"
    iteration: Tensor
    majority: Tensor
    centers: Tensor
    unused: Tensor
    mean: Tensor
    scale: Tensor
    modality: ClassVar = "audio"
    requires: ClassVar[tuple[str, ...]] = ("frames",)
    masked: ClassVar = True
    encoder_inputs: ClassVar = ("audio",)
    visible_targets: ClassVar = ("mask",)
    defaults: ClassVar = {
        "optimizer": "adamw",
        "lr": 1e-3,
        "weight_decay": 0.01,
        "betas": "0.9,0.98",
        "batch_size": 64,
        "seconds": "recording",
    }
    preview_columns: ClassVar = ("recording", "masked", "clusters", "prediction")

    def build_head(self) -> nn.Module:
        """Build the projection of frames, and a vector for each cluster."""
        options = self.options
        self.most = {
            "clusters": 50 if options.clusters == "auto" else options.clusters,
            "feature_clusters": 100 if options.feature_clusters == "auto" else options.feature_clusters,
        }
        return ClusterHead(self.encoder.width, options.width, max(self.most.values()))

    def setup(self) -> None:
        """Build what labels frames: MFCC, a past encoder, and centers."""
        convolutions, width = self.encoder.convolutions, self.encoder.width
        self.mfcc = MFCC(self.encoder.sample_rate, convolutions.reach, convolutions.hop)
        self.past = Teacher(self.encoder)
        self.fill = nn.Parameter(0.02 * torch.randn(width))
        largest, count = max(width, 39), max(self.most.values())
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.register_buffer("centers", torch.zeros(count, largest))
        self.register_buffer("unused", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("mean", torch.zeros(largest))
        self.register_buffer("scale", torch.ones(largest))
        self.register_buffer("majority", torch.zeros((), dtype=torch.int64))
        self.labels_features = False  # a copy of `iteration > 0` on the host: reading a device in every step would wait for it

    def before_epoch(self, run: Run) -> None:
        """Fit the clusters anew where an iteration begins: of MFCC at first, then of the features of the encoder so far."""
        due = min(int(self.options.iterations * self.clock.progress), self.options.iterations - 1)
        if self.clock.epoch > 0 and due <= int(self.iteration):
            return
        self.iteration.fill_(due)
        self._read_iteration()
        if self.labels_features:
            self.past.update(self.encoder, momentum=0.0)
        parts = run.batch(_FIT_RECORDINGS)["audio"][:, 0].split(64)
        features = torch.cat([self._features(part)[self.encoder.recorded_frames(part)] for part in parts])
        name = "feature_clusters" if self.labels_features else "clusters"
        count, most = self.most[name], len(features) // _FRAMES_PER_CLUSTER
        if count > most and getattr(self.options, name) != "auto":
            raise SslkitError(f"{count} is too many for {len(features):,} frames", f"use at most {most}", flag=name)
        count = max(2, min(count, most))
        values = features.shape[1]
        self.mean[:values] = features.mean(dim=0)
        self.scale[:values] = features.std(dim=0) + 1e-6
        result = kmeans((features - self.mean[:values]) / self.scale[:values], count)
        self.centers[:count, :values] = result.centers
        self.unused.fill_(True)[:count] = False
        self.majority.copy_(result.labels.bincount().argmax())
        if self.labels_features:  # the vectors of other clusters tell nothing about these
            self.head.reset()
            run.reset_optimizer_state(self.head)

    def transform(self, batch: Batch) -> Batch:
        """Return sound `[B, T]`, which frames are recorded and masked, bool `[B, N]`, and their clusters `target`, `[B, N]`."""
        clean, sound = batch["audio"][:, 0], self._sound(batch)
        recorded = self.encoder.recorded_frames(clean)  # what is mixed in may go on after the recording
        mask = span_mask(recorded, self.options.mask_ratio, self.options.span)
        return {"audio": sound, "recorded": recorded, "mask": mask, "target": self._label(clean)}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return scores of clusters, `[B, N, clusters]`, and the mean square of the convolutions' output, `[B]`."""
        frames = self.encoder.frames(batch["audio"])
        context = self.encoder.contexts(frames, batch["recorded"], batch["mask"], self.fill)[-1]
        return {"clusters": self.head(context), "square": widen(frames).square().mean(dim=(1, 2))}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the sum of cross-entropies over masked frames (equation 1), which `counts` divides, and the penalty."""
        nats = F.cross_entropy(self._scores(output).transpose(1, 2), batch["target"], reduction="none")
        return {"masked_nats": (nats * batch["mask"]).sum(), "penalty": self.options.penalty * output["square"].mean()}

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of masked frames."""
        return {"masked_nats": batch["mask"].sum()}

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return how often masked frames are recognized, and how often the most frequent cluster would be right."""
        target, mask = batch["target"], batch["mask"]
        predicted = self._scores(output).argmax(dim=2)
        count = mask.sum(dim=1)
        correct, majority = predicted == target, target == self.majority
        return {
            "accuracy": (correct & mask).sum(dim=1) / count,
            "majority": (majority & mask).sum(dim=1) / count,
        }

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return spectrograms, without and with masks, the clusters, and, once trained, those with the predicted ones."""
        sound, recorded = batch["audio"].float(), batch["recorded"]
        columns = [draw_spectrograms(sound, self.encoder.sample_rate), draw_masked(sound, batch["mask"], self.encoder)]
        columns.append(draw_labels(batch["target"], recorded, sound.shape[1], self.encoder))
        if output is not None:
            predicted = self._scores(output).argmax(dim=2).where(batch["mask"], batch["target"])
            columns.append(draw_labels(predicted, recorded, sound.shape[1], self.encoder))
        return torch.stack(columns, dim=1)

    def _sound(self, batch: Batch) -> Tensor:
        """Return what the encoder gets of a batch."""
        sound: Tensor = batch["audio"][:, 0]
        return sound

    def _scores(self, output: dict[str, Tensor]) -> Tensor:
        """Return the scores of the clusters that there are, `[B, N, clusters]`; -inf for the others."""
        return output["clusters"].masked_fill(self.unused, float("-inf"))

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """Load a state, and read from it which features are clustered."""
        result = super().load_state_dict(*arguments, **options)
        self._read_iteration()
        return result

    def _read_iteration(self) -> None:
        self.labels_features = bool(self.iteration > 0)

    @torch.no_grad()
    def _features(self, sound: Tensor) -> Tensor:
        """Return what frames of sound `[B, T]` are clustered by, `[B, N, values]`."""
        if not self.labels_features:
            features: Tensor = self.mfcc(sound, self.encoder.recorded_frames(sound))[0]
            return features
        past = self.past.parts[0]
        assert isinstance(past, SpeechEncoder)
        layers = past.layers(sound)
        return widen(layers[len(layers) // 2])  # the middle block (the sixth of twelve in the paper)

    @torch.no_grad()
    def _label(self, sound: Tensor) -> Tensor:
        """Return the nearest center of each frame, int64 `[B, N]`."""
        features = self._features(sound)
        values = features.shape[2]
        centers = self.centers[:, :values].masked_fill(self.unused[:, None], 1e4)  # far away from all
        standardized = (features - self.mean[:values]) / self.scale[:values]
        return nearest_center(standardized.flatten(0, 1), centers)[0].view(features.shape[:2])


class ClusterHead(nn.Module):
    """Compare projected frames with a vector for each cluster: cosine / 0.1 (equation 3)."""

    def __init__(self, encoder_width: int, width: int, clusters: int) -> None:
        super().__init__()
        self.project = nn.Linear(encoder_width, width)
        self.vectors = nn.Parameter(torch.empty(clusters, width))
        self.reset()

    def reset(self) -> None:
        """Draw new weights."""
        self.project.reset_parameters()
        nn.init.uniform_(self.vectors)

    def forward(self, frames: Tensor) -> Tensor:
        """Return scores `[B, N, clusters]`, float32."""
        with torch.autocast(frames.device.type, enabled=False):  # half precision cannot tell similar directions apart
            projected = F.normalize(self.project(widen(frames)), dim=-1)
            return projected @ F.normalize(self.vectors, dim=-1).T / _TEMPERATURE
