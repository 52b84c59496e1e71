"""What tasks share that classify images by clusters of features: options, label buffer, head, loss and preview."""

from abc import abstractmethod
from typing import Annotated, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from sslkit.contract.encoder import Encoder
from sslkit.contract.errors import SslkitError
from sslkit.contract.task import Batch, EncoderBuilder, Run
from sslkit.image.task import ImageTask
from sslkit.image.views import CropOptions, CropScale
from sslkit.nn import cluster_count, whiten
from sslkit.pictures import contact_sheets

ClusterCount = Annotated[int, Field(ge=2)]


class ClusterOptions(CropOptions):
    """Options of a task that classifies images by clusters."""

    clusters: ClusterCount | Literal["auto"] = Field(
        default="auto", description="Number of clusters; auto: a tenth of the images, at most 100."
    )
    crop_scale: CropScale = 0.3


class ClusterLabels(ImageTask):
    """Classify images by cluster; subclasses fill `label`, int64 `[samples]`, in `before_epoch`."""

    options: ClusterOptions
    head: nn.Linear
    label: Tensor
    needs: ClassVar = ("index",)
    defaults: ClassVar = {"optimizer": "sgd", "lr": 0.06, "weight_decay": 5e-4, "batch_size": 256}
    preview_columns: ClassVar = ("one cluster per row",)

    def build_head(self) -> nn.Module:
        """Build the linear classifier."""
        self.clusters = cluster_count(self.options.clusters, self.data.samples)
        return nn.Linear(self.encoder.width, self.clusters)

    def setup(self) -> None:
        """Register the buffer with the cluster of each image."""
        self.register_buffer("label", torch.zeros(self.data.samples, dtype=torch.int64))

    def transform(self, batch: Batch) -> Batch:
        """Return a crop of each image, `[B, C, S, S]`, and its cluster, `label` `[B]`."""
        image = self.crop(batch)
        return {"image": image, "label": self.label[batch["index"]]}

    def loss(self, output: Tensor, batch: Batch) -> Tensor | dict[str, Tensor]:
        """Return the mean cross-entropy."""
        return F.cross_entropy(output, batch["label"])

    def metrics(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Return whether the predicted cluster is correct."""
        return {"accuracy": (output.argmax(dim=1) == batch["label"]).float()}

    def chance(self) -> dict[str, float]:
        """Return the accuracy of a guess among the clusters."""
        return {"accuracy": 1 / self.clusters}

    def reasons(self) -> dict[str, str]:
        """Return the number of clusters that `auto` became."""
        return {"clusters": f"{self.clusters}: for {self.data.samples:,} images"} if self.options.clusters == "auto" else {}

    def preview(self, batch: Batch, output: Tensor | None) -> Tensor:
        """Return a contact sheet of the clusters: the labels, or a trained task's predictions."""
        return contact_sheets(batch["original"], batch["label"] if output is None else output.argmax(dim=1))


class OwnClusterOptions(ClusterOptions):
    """Options of a task that clusters its encoder's own features, again and again."""

    components: ClusterCount | Literal["auto"] = Field(
        default="auto", description="Principal components to cluster; auto: a quarter of the features, at most 256."
    )
    reassign: int = Field(default=1, ge=1, description="Epochs between clusterings.")
    sobel: bool = Field(default=False, description="Feed the encoder Sobel edges instead of colors, as in the paper.")


class OwnClusters(ClusterLabels):
    """Classify images by clusters of the encoder's own features; subclasses say how these are clustered."""

    options: OwnClusterOptions

    @classmethod
    def build_encoder(cls, options: OwnClusterOptions, build: EncoderBuilder) -> Encoder:
        """Build the encoder, with Sobel edges as its input if `--sobel` is set."""
        if options.sobel and build.data.channels != 3:
            raise SslkitError(
                f"the images have {build.data.channels} channels", "Sobel edges are computed from RGB only", flag="sobel"
            )
        return build(select="sobel") if options.sobel else build()

    @abstractmethod
    def cluster(self, features: Tensor) -> Tensor:
        """Return the cluster `[N]` of each image from whitened features `[N, components]`."""

    def before_epoch(self, run: Run) -> None:
        """Cluster the features, sample all clusters equally often, and reset the classifier."""
        if self.clock.epoch % self.options.reassign:
            return
        requested = self.options.components
        components = min(256, max(2, self.encoder.width // 4)) if requested == "auto" else requested
        features = whiten(run.features(), components).to(self.label.device)
        self.label.copy_(self.cluster(features))
        run.sample_balanced(self.label)
        nn.init.normal_(self.head.weight, std=0.01)
        nn.init.zeros_(self.head.bias)
        run.reset_optimizer_state(self.head)
