"""Tell clusters apart that were found in the encoder's own features, anew in every epoch."""

from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit import Batch, Encoder, EncoderBuilder, PretextTask, Run, SslkitError, TaskOptions
from sslkit.image.transforms import flip, random_resized_crop
from sslkit.nn import cluster_count, kmeans, whiten
from sslkit.pictures import contact_sheets

Count = Annotated[int, Field(ge=2)]


class DeepCluster(PretextTask):
    """Tell clusters apart that were found in the encoder's own features, anew in every epoch (Caron et al., 2018).

    Every cluster is drawn equally often, empty ones take over half of a large one, and the classifier begins anew with
    the labels: their numbers mean something else each time.
    """

    class Options(TaskOptions):
        """Hold deepcluster's options."""

        clusters: Count | Literal["auto"] = Field(
            default="auto", description="Clusters; auto: a tenth of the images, 100 at most (10,000 in the paper)."
        )
        components: Count | Literal["auto"] = Field(
            default="auto",
            description="Principal components that are clustered; auto: a quarter of the features, 256 at most.",
        )
        reassign: int = Field(default=2, ge=1, description="Epochs between two clusterings (1 in the paper, of 5,000 steps).")
        sobel: bool = Field(default=False, description="Show the encoder edges instead of colors, as the paper does.")
        crop_scale: float = Field(default=0.3, gt=0, le=1, description="Smallest share of the image that a random crop keeps.")

    options: Options
    head: nn.Linear
    label: Tensor
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 256}
    preview_columns: ClassVar = ("a cluster in each row",)

    @classmethod
    def build_encoder(cls, options: Options, build: EncoderBuilder) -> Encoder:
        """Build the encoder, of edges if asked."""
        if options.sobel and build.data.channels != 3:
            raise SslkitError(f"images of {build.data.channels} channels", "an encoder of edges is built for RGB", flag="sobel")
        return build(select="sobel") if options.sobel else build()

    def build_head(self) -> nn.Module:
        """Build the linear classifier."""
        self.clusters = cluster_count(self.options.clusters, self.data.samples)
        return nn.Linear(self.encoder.width, self.clusters)

    def setup(self) -> None:
        """Keep the cluster of each image."""
        self.register_buffer("label", torch.zeros(self.data.samples, dtype=torch.int64))

    def before_epoch(self, run: Run) -> None:
        """Cluster the features, draw all clusters alike, and begin with a new classifier."""
        if self.clock.epoch % self.options.reassign:
            return
        asked = self.options.components
        components = min(256, max(2, self.encoder.width // 4)) if asked == "auto" else asked
        rows = whiten(run.features(), components).to(self.label.device)
        self.label.copy_(kmeans(rows, self.clusters).labels)
        run.sample_balanced(self.label)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        run.reset_optimizer_state(self.head)

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image, `[B, C, S, S]`, and its cluster, `label` `[B]`."""
        image = flip(random_resized_crop(batch["image"], self.data.size, scale=(self.options.crop_scale, 1.0)))
        return {"image": image, "label": self.label[batch["index"]]}

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Return the mean cross-entropy."""
        return F.cross_entropy(output, batch["label"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the cluster was told right: by chance, one in `clusters`."""
        return {"accuracy": (output.argmax(dim=1) == batch["label"]).float()}

    def reasons(self) -> dict[str, str]:
        """Say what `auto` became."""
        return {"clusters": f"{self.clusters}: of {self.data.samples:,} images"} if self.options.clusters == "auto" else {}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return a contact sheet of clusters: those that were found, or, of a trained task, those that are told."""
        return contact_sheets(batch["original"], batch["label"] if output is None else output.argmax(dim=1))
