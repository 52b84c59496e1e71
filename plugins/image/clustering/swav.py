"""SwAV (Caron et al., 2020)."""

from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Paper, PretextTask
from sslkit.image.views import Crops, MultiCropOptions
from sslkit.nn import ProjectorOptions, Queue, check_queue, cluster_count, mlp, sinkhorn, swapped_prediction
from sslkit.pictures import contact_sheets

PrototypeCount = Annotated[int, Field(ge=2)]


_MAX_PROTOTYPES = 300


class SwAV(PretextTask):
    """Predict another view's prototype assignment (SwAV; Caron et al., 2020).

    Sinkhorn-Knopp codes use all prototypes equally, so that no prototype can attract all images. Small crops predict the
    codes of the two large ones.
    """

    class Options(ProjectorOptions, MultiCropOptions):
        """Options of `swav`."""

        crop_scale: float = Field(
            default=0.3, gt=0, le=1, description="Minimum area of a large crop as a fraction of the image (0.14 in the paper)."
        )
        small_scale: float = Field(
            default=0.3, gt=0, le=1, description="Maximum area of a small crop (0.14 in the paper); the minimum is 0.05."
        )
        prototypes: PrototypeCount | Literal["auto"] = Field(
            default="auto", description="Number of prototypes; auto: one per ten images, at most 300 (3,000 in the paper)."
        )
        frozen_epochs: int = Field(default=1, ge=0, description="Epochs at the start in which the prototypes are frozen.")
        epsilon: float = Field(
            default=0.05, gt=0, description="Entropy regularization of Sinkhorn-Knopp (ε); larger values give smoother codes."
        )
        iterations: int = Field(default=3, ge=1, le=100, description="Iterations of Sinkhorn-Knopp.")
        temperature: float = Field(default=0.1, gt=0, description="Softmax temperature of the predictions.")
        queue: int = Field(
            default=0, ge=0, description="Past images that codes are computed with (3,840 for the paper's small batches)."
        )
        queue_from: int = Field(default=15, ge=0, description="First epoch in which the queue is used.")
        hidden: int = Field(default=128, ge=1, description="Hidden width of the projector (2,048 in the paper).")

    options: Options
    couples_samples: ClassVar = True
    encoder_inputs: ClassVar = ("image", "small")
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 256}
    paper: ClassVar = Paper(
        source="scripts/swav_800ep_pretrain.sh of the authors",
        settings={
            "size": 224,
            "encoder": "resnet50",
            "batch_size": 4096,
            "epochs": 800,
            "optimizer": "lars",
            "lr": 4.8,
            "weight_decay": 1e-6,
            "warmup": 10 / 800,
            "crop_scale": 0.14,
            "small_scale": 0.14,
            "color_strength": Options.photo_jitter,
            "blur": Options.photo_blur,
            "small_size": 96,
            "prototypes": 3000,
            "hidden": 2048,
        },
        unsupported=(
            "a final rate of 0.0048 (here 0), a warm-up from 0.3",
            "decay of the prototypes",
            "decay and trust ratio of biases and norms",
        ),
    )

    def build_head(self) -> nn.Module:
        """Build the projector."""
        return mlp([self.encoder.width, self.options.hidden, self.options.width], self.options.norm)

    def setup(self) -> None:
        """Build the prototypes, and a queue for each large crop."""
        options = self.options
        self.crops = Crops(options, self.data, self.encoder)
        check_queue(options.queue or self.data.batch_size, self.data)
        count = cluster_count(options.prototypes, self.data.samples, _MAX_PROTOTYPES, "prototypes")
        self.prototypes = nn.Parameter(F.normalize(torch.randn(count, options.width), dim=1))
        self.queues = nn.ModuleList(Queue(options.queue, options.width) for _ in range(2 if options.queue else 0))

    def param_groups(self) -> list[dict[str, Any]]:
        """Freeze the prototypes at first, while the features adapt to them."""
        return [{"params": [self.prototypes], "frozen_epochs": self.options.frozen_epochs, "weight_decay": 0.0}]

    def transform(self, batch: Batch) -> Batch:
        """Return two large crops `[B, 2, C, S, S]` and the small ones, `small` `[B, V, C, s, s]`."""
        return self.crops.draw(batch)

    def predict(self, batch: Batch) -> Tensor:
        """Return unit vectors of all crops, the large ones first, `[B, 2 + V, D]`: one encoder pass per size."""
        features = self.crops.features(lambda views: self.each_view(self.encoder, views), batch)
        unit: Tensor = F.normalize(self.head(features.flatten(0, 1)), dim=1)
        views: Tensor = unit.unflatten(0, features.shape[:2])
        return views

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of each large crop's codes with the predictions from all other crops."""
        scores = output @ self.prototypes.T
        return swapped_prediction(scores, self._codes(output), self.options.temperature)

    def remember(self, output: Tensor, batch: Batch) -> Batch:
        """Return the large crops' vectors, for the queues."""
        return {"large": output[:, :2]} if self.options.queue else {}

    def after_step(self, remembered: Batch) -> None:
        """Normalize the prototypes to length 1 and fill the queues."""
        self.prototypes.copy_(F.normalize(self.prototypes, dim=1))
        for view, queue in enumerate(self.queues):
            assert isinstance(queue, Queue)
            queue.push(remembered["large"][:, view])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return how often both large crops have the same nearest prototype, and their cosine similarity."""
        first, second = (output[:, :2] @ self.prototypes.T).argmax(dim=2).unbind(1)
        return {"accuracy": (first == second).float(), "alignment": (output[:, 0] * output[:, 1]).sum(dim=1)}

    def reasons(self) -> dict[str, str]:
        """Return the size of small crops, the number of prototypes, and when the queue starts."""
        reasons = self.crops.reasons()
        if self.options.prototypes == "auto":
            reasons["prototypes"] = f"{len(self.prototypes)}: for {self.data.samples:,} images"
        if self.options.queue:
            reasons["queue"] = f"{self.options.queue:,} images, used from epoch {self.options.queue_from} on"
        return reasons

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return the crops of each image; for a trained task, a contact sheet with one prototype per row."""
        if output is not None:
            return contact_sheets(batch["original"], (output[:, 0] @ self.prototypes.T).argmax(dim=1))
        return self.crops.pictures(batch)

    def _codes(self, output: Tensor) -> Tensor:
        """Return the codes of the large crops, `[B, 2, K]`, computed together with past images once the queue is full."""
        with torch.no_grad():
            options, codes = self.options, []
            full = self.clock.epoch >= options.queue_from and self.clock.step * len(output) >= options.queue
            for view in range(2):
                vectors = output[:, view]
                if options.queue and full:
                    past = self.queues[view]
                    assert isinstance(past, Queue)
                    vectors = torch.cat([vectors, past.rows])
                view_codes = sinkhorn(vectors @ self.prototypes.T, options.epsilon, options.iterations)
                codes.append(view_codes[: len(output)])
            return torch.stack(codes, dim=1)
