"""Predict from one view of an image which prototypes another view belongs to."""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, PretextTask
from sslkit.image.views import Crops, MultiCropOptions
from sslkit.nn import Norm, Queue, check_queue, cluster_count, mlp, sinkhorn, swapped_prediction
from sslkit.pictures import contact_sheets

Prototypes = Annotated[int, Field(ge=2)]


_MOST = 300


class SwAV(PretextTask):
    """Predict from one view of an image which prototypes another view belongs to (Caron et al., 2020).

    Codes use all prototypes alike (Sinkhorn-Knopp), so that no one of them can take all images. Small crops predict the
    codes of the two large ones.
    """

    class Options(MultiCropOptions):
        """Hold swav's options."""

        crop_scale: float = Field(
            default=0.3, gt=0, le=1, description="Smallest share of the image in a large crop (0.14 in the paper)."
        )
        small_scale: float = Field(
            default=0.3, gt=0, le=1, description="Largest share in a small crop (0.14 in the paper); the smallest is 0.05."
        )
        prototypes: Prototypes | Literal["auto"] = Field(
            default="auto", description="Prototypes; auto: one for ten images, 300 at most (3,000 in the paper)."
        )
        frozen_epochs: int = Field(default=1, ge=0, description="Epochs in which the prototypes stay as they are.")
        epsilon: float = Field(default=0.05, gt=0, description="How smooth the codes are.")
        iterations: int = Field(default=3, ge=1, le=100, description="Iterations of Sinkhorn-Knopp.")
        temperature: float = Field(default=0.1, gt=0, description="Temperature of the predictions.")
        queue: int = Field(
            default=0, ge=0, description="Past images that codes are found with (3,840 in the paper's small batches)."
        )
        queue_from: int = Field(default=15, ge=0, description="First epoch in which they are used.")
        hidden: int = Field(default=128, ge=1, description="Hidden width of the projector (2,048 in the paper).")
        width: int = Field(default=128, ge=1, description="Width of the vectors that are compared.")
        norm: Norm = Field(default="batch", description="Norm inside the projector.")

    options: Options
    couples_samples: ClassVar = True
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 256}

    def build_head(self) -> nn.Module:
        """Build the projector."""
        return mlp([self.encoder.width, self.options.hidden, self.options.width], self.options.norm)

    def setup(self) -> None:
        """Build prototypes and queues, one for each large crop."""
        options = self.options
        self.crops = Crops(options, self.data, self.encoder)
        check_queue(options.queue or self.data.batch_size, self.data)
        count = cluster_count(options.prototypes, self.data.samples, _MOST, "prototypes")
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, options.width), dim=1))
        self.queues = nn.ModuleList(Queue(options.queue, options.width) for _ in range(2 if options.queue else 0))

    def param_groups(self) -> list[dict[str, Any]]:
        """Keep the prototypes as they are for a while: features come to them first."""
        return [{"params": [self.prototypes], "frozen_epochs": self.options.frozen_epochs, "weight_decay": 0.0}]

    def transform(self, batch: Batch) -> Batch:
        """Return two large crops `[B, 2, C, S, S]` and some small ones, `small` `[B, V, C, s, s]`."""
        return self.crops.draw(batch["image"])

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors of all crops, the large ones first, `[B, 2 + V, D]`: one pass of the encoder for each size."""
        features = self.crops.features(lambda views: self.each_view(self.encoder, views), batch)
        unit: Tensor = F.normalize(self.head(features.flatten(0, 1)), dim=1)
        folded: Tensor = unit.unflatten(0, features.shape[:2])
        return folded

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of each large crop's codes against what the other crops say."""
        scores = output @ self.prototypes.T
        return swapped_prediction(scores, self._codes(output), self.options.temperature)

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        """Keep the large crops' vectors for the queues."""
        return {"large": output[:, :2]} if self.options.queue else {}

    def after_step(self, seen: Batch) -> None:
        """Bring the prototypes back to length 1 and fill the queues."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        for place, queue in enumerate(self.queues):
            assert isinstance(queue, Queue)
            queue.push(seen["large"][:, place])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how often both large crops go to the same prototype, and how alike they are, cosine."""
        first, second = (output[:, :2] @ self.prototypes.T).argmax(dim=2).unbind(1)
        return {"accuracy": (first == second).float(), "alignment": (output[:, 0] * output[:, 1]).sum(dim=1)}

    def reasons(self) -> dict[str, str]:
        """Say how large the small crops are."""
        said = self.crops.reasons()
        if self.options.prototypes == "auto":
            said["prototypes"] = f"{len(self.prototypes)}: for {self.data.samples:,} images"
        if self.options.queue:
            said["queue"] = f"{self.options.queue:,} images, used from epoch {self.options.queue_from} on"
        return said

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the crops of each image; of a trained task, a contact sheet with a prototype in each row."""
        if output is not None:
            return contact_sheets(batch["original"], (output[:, 0] @ self.prototypes.T).argmax(dim=1))
        return self.crops.pictures(batch)

    def _codes(self, output: Tensor) -> Tensor:
        """Return the codes of the large crops, `[B, 2, K]`; with those of past images beside them once the queue is full."""
        with torch.no_grad():
            options, found = self.options, []
            full = self.clock.epoch >= options.queue_from and self.clock.step * len(output) >= options.queue
            for place in range(2):
                vectors = output[:, place]
                if options.queue and full:
                    past = self.queues[place]
                    assert isinstance(past, Queue)
                    vectors = torch.cat([vectors, past.rows])
                codes = sinkhorn(vectors @ self.prototypes.T, options.epsilon, options.iterations)
                found.append(codes[: len(output)])
            return torch.stack(found, dim=1)
