"""COLA (Saeed et al., 2021)."""

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask, TaskOptions
from sslkit.audio.pictures import draw_spectrograms


class COLA(PretextTask):
    """Match two windows of a recording among a batch of recordings (COLA; Saeed et al., 2021)."""

    class Options(TaskOptions):
        """Options of `cola`."""

        width: int = Field(default=128, ge=1, description="Width of the projection (512 in the paper).")

    options: Options
    modality: ClassVar = "audio"
    couples_samples: ClassVar = True
    defaults: ClassVar = {"lr": 3e-3, "weight_decay": 1e-4, "batch_size": 256}
    paper: ClassVar = Paper(
        source="the paper, cola/main.py of the authors",
        settings={
            "seconds": 0.96,
            "sample_rate": 16_000,
            "width": 512,
        },
        unsupported=("EfficientNet-B0 on 64 mel bands, with max pooling",),
    )
    preview_columns: ClassVar = ("window 1", "window 2", "prediction")

    def build_head(self) -> nn.Module:
        """Build the projector: a linear layer, LayerNorm and tanh (section 3)."""
        width = self.options.width
        return nn.Sequential(nn.Linear(self.encoder.width, width), nn.LayerNorm(width), nn.Tanh())

    def setup(self) -> None:
        """Build the bilinear similarity."""
        self.similarity = nn.Linear(self.options.width, self.options.width, bias=False)

    def transform(self, batch: Batch) -> Batch:
        """Return two windows of each recording, `[B, 2, T]`."""
        return {"audio": batch["audio"]}

    def predict(self, batch: Batch) -> dict[str, Tensor]:
        """Return projections of both windows, `[B, D]`, the first multiplied by the matrix of the bilinear similarity."""
        first, second = self.each_view(lambda sound: self.head(self.encoder(sound)), batch["audio"]).unbind(1)
        return {"first": self.similarity(first), "second": second}

    def loss(self, output: dict[str, Tensor], batch: Batch) -> Tensor:
        """Return the cross-entropy of the matching window among those of all recordings (equation 1)."""
        scores = output["first"] @ output["second"].T
        return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    def metrics(self, output: dict[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Return the accuracy, and the lower bound log B - loss on the mutual information, in nats."""
        scores = output["first"] @ output["second"].T
        labels = torch.arange(len(scores), device=scores.device)
        bound = math.log(len(scores)) - F.cross_entropy(scores, labels, reduction="none")
        return {"accuracy": (scores.argmax(dim=1) == labels).float(), "information_bound_nats": bound}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the recordings of a batch."""
        return {"accuracy": 1 / self.data.batch_size}

    def preview(self, batch: Batch, output: Any) -> Tensor | None:
        """Return spectrograms of both windows, and of the second window that is predicted to match the first."""
        sound = batch["audio"]
        flat = draw_spectrograms(sound.flatten(0, 1), self.data.details["sample_rate"])
        pictures: Tensor = flat.unflatten(0, sound.shape[:2])
        if output is None:
            return pictures
        nearest = (output["first"] @ output["second"].T).argmax(dim=1)
        return torch.cat([pictures, pictures[nearest, 1:]], dim=1)
